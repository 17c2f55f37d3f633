"""What learns of a language model, how many parameters that is, and new tokens that move nothing else."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_language import PROMPTS, REPORTS, language, tokenizer, volume_lm
from transformers import AutoModelForCausalLM, GPT2Config

import vol3d
from vol3d.model.adapters import Lora, Prefix, count_parameters, parameter_table
from vol3d.model.language import LanguageModel, Pretrained
from vol3d.model.pretrained import build, save

GRID = vol3d.Grid(spacing=(4, 4, 4), shape=(8, 8, 8), window=(-1000, 1000))


@pytest.mark.parametrize(
    ("policy", "learns"),
    [
        ("none", 0),
        ("norms", 7 * 32),
        ("embeddings", 300 * 32),
        ("embeddings+norms", 300 * 32 + 7 * 32),
        ("last:1", 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32),
        ("head+last:2", 300 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32)),
    ],
)
def test_a_policy_lets_exactly_its_parts_learn(policy: str, learns: int) -> None:
    one = language(train=policy)
    assert sum(p.numel() for p in one.parameters() if p.requires_grad) == learns


def test_policies_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train names 'layers', known are all, none, .*last:N"):
        language(train="layers")
    with pytest.raises(ValueError, match=r"train='last:4' of a language model with 3 layers: name 1 to 3"):
        language(train="last:4")
    with pytest.raises(ValueError, match=r"train='lora' leaves 0 parameters .*lora=None"):
        language(train="lora")


def test_the_counts_are_exact_and_name_each_part() -> None:
    model = volume_lm(lora=Lora(rank=2, targets=["q_proj"]), prefix=Prefix(5), special_tokens=["[SEG]", "<box>"])
    parts = {"encoder": model.encoder, "projector": model.projector, "language": model.language, "tasks": None}
    rows = {row.part: row for row in count_parameters(parts)}
    assert rows["language: lora"].learns == rows["language: lora"].total == 3 * (2 * 32 + 32 * 2)
    assert rows["language: prefix"].learns == 3 * 2 * 2 * 5 * 8
    assert rows["language: new tokens"].learns == 2 * 2 * 32
    assert rows["language: base"].learns == 0
    assert rows["all"].total == sum(p.numel() for p in model.parameters())
    assert rows["all"].learns == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"{rows['all'].learns:,} of" in parameter_table(parts)


def test_a_tied_table_is_counted_once() -> None:
    scratch = vol3d.LanguageModel.scratch(REPORTS, embed_dim=32, depth=1, num_heads=2)
    assert count_parameters({"language": scratch})[-1].total == sum(p.numel() for p in scratch.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens_learn_in_rows_of_their_own_and_the_tables_stay(tied: bool) -> None:
    one = (
        vol3d.LanguageModel.scratch(REPORTS, embed_dim=32, depth=1, num_heads=2, special_tokens=["[SEG]"])
        if tied
        else language(special_tokens=["[SEG]", "[SEG]"])
    )
    assert one.encode("a[SEG]b").count(one.tokenizer.convert_tokens_to_ids("[SEG]")) == 1
    table, head = one.causal_lm.get_input_embeddings(), one.causal_lm.get_output_embeddings()
    assert (table.rows is head.rows) == tied
    ids = torch.tensor([one.answer_ids("No [SEG] here.")])
    before = table.base.weight.clone()
    for parameter in (table.base.weight, head.base.weight):
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    rows = table.rows.detach().clone()
    one.loss(table(ids), torch.ones_like(ids), ids).backward()
    optimizer.step()
    assert torch.equal(table.base.weight, before)
    assert (table.rows - rows).abs().min() > 1e-3
    # It can be written, and the volume's placeholder, which has no row, cannot.
    with torch.no_grad():
        head.rows.copy_(100 * torch.ones_like(rows))
        logits = head(torch.ones(1, 32))
    assert logits.argmax().item() == one.tokenizer.convert_tokens_to_ids("[SEG]")
    assert logits[0, one.volume_id] == torch.finfo(torch.float32).min


@pytest.mark.parametrize("kind", ["lora", "dora", "prefix", "tokens"])
@pytest.mark.parametrize("merge", [False, True])
def test_saved_and_loaded_gives_the_same_logits_merged_or_not(tmp_path: Path, kind: str, merge: bool) -> None:
    settings = {
        "lora": {"lora": Lora(rank=2)},
        "dora": {"lora": Lora(rank=2, dora=True)},
        "prefix": {"prefix": Prefix(3), "lora": Lora(rank=2, targets=["q_proj"])},
        "tokens": {"special_tokens": ["[SEG]"], "lora": Lora(rank=2)},
    }[kind]
    model = volume_lm(**settings)
    with torch.no_grad():
        for parameter in model.language.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save(tmp_path / "model", model, {}, GRID, merge=merge)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    again = build(tmp_path / "model")[0]
    assert (again.language.lora is None) == merge
    image = torch.randn(2, 1, 8, 8, 8)
    answers = ["The liver is normal.[SEG]"] * 2
    expected = model.language_loss(model.encode(image), PROMPTS, answers)
    loss = again.language_loss(again.encode(image), PROMPTS, answers)
    torch.testing.assert_close(loss, expected, rtol=1e-5 if merge else 0, atol=1e-5 if merge else 0)


def test_an_adapter_on_a_tied_head_merges_into_a_table_of_its_own(tmp_path: Path) -> None:
    plain = vol3d.LanguageModel.scratch(REPORTS, embed_dim=32, depth=1, num_heads=2)
    model = volume_lm()
    model.language = LanguageModel(plain.causal_lm, plain.tokenizer, lora=Lora(rank=2, targets=["q_proj", "lm_head"]))
    for name, parameter in model.language.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save(tmp_path / "model", model, {}, GRID, merge=True)
    again = build(tmp_path / "model")[0]
    image = torch.randn(1, 1, 8, 8, 8)
    losses = [one.language_loss(one.encode(image), PROMPTS[:1], REPORTS[:1]) for one in (model.eval(), again)]
    torch.testing.assert_close(*losses)
    assert build(save(tmp_path / "twice", again, {}, GRID, merge=True))[0].language.lora is None


def test_four_bits_are_refused_where_they_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    language().causal_lm.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"'4bit' needs a CUDA GPU, this machine has 0: .*bfloat16"):
        Pretrained(str(tmp_path), quantization="4bit", lora=Lora()).build()
    with pytest.raises(ValueError, match=r"4-bit weights cannot learn: give lora"):
        Pretrained(str(tmp_path), quantization="4bit").build()
    with pytest.raises(ValueError, match=r"quantization '3bit': known is '4bit'"):
        Pretrained(str(tmp_path), quantization="3bit", lora=Lora()).build()


def test_recomputed_layers_give_the_same_gradients_and_keep_less(tmp_path: Path) -> None:
    language().causal_lm.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    embeds, labels = torch.randn(2, 40, 32), torch.randint(5, 20, (2, 40))
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = Pretrained(str(tmp_path), lora=Lora(rank=2), checkpointing=checkpointing).build().train()
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(_kept, kept), lambda tensor: tensor):
            loss = model.loss(embeds, torch.ones_like(labels), labels)
        loss.backward()
        found.append(
            (loss.detach(), [p.grad for p in model.parameters() if p.requires_grad], sum(t.numel() for t in kept))
        )
    torch.testing.assert_close(found[0][:2], found[1][:2])
    assert found[1][2] < 0.5 * found[0][2]


def _kept(kept: list[torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    kept.append(tensor)
    return tensor


def test_a_prefix_and_what_drops_the_cache_do_not_go_together() -> None:
    model = volume_lm(prefix=Prefix(3)).train()
    features = model.encode(torch.randn(2, 1, 8, 8, 8))
    with pytest.raises(ValueError, match=r"pack=64 with prefix tuning: the prefix of 3 tokens"):
        model.language_loss(features, PROMPTS, REPORTS[:2], pack=64)
    model.language.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ValueError, match=r"prefix tuning needs the key-value cache, gradient checkpointing drops it"):
        model.language_loss(features, PROMPTS, REPORTS[:2])


def test_a_prefix_and_beams_and_packing_under_flash_attention_are_refused() -> None:
    model = volume_lm(prefix=Prefix(3))
    features = model.encode(torch.randn(2, 1, 8, 8, 8))
    with pytest.raises(ValueError, match=r"prefix stands before one text a row, 2 are asked for"):
        model.generate(features, PROMPTS, num_beams=2, max_new_tokens=4)
    model = volume_lm()
    model.language.causal_lm.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"pack=64 with attn_implementation='flash_attention_2'.*use 'sdpa'"):
        model.language_loss(features, PROMPTS, REPORTS[:2], pack=64)


def test_a_model_that_keeps_its_layers_elsewhere_takes_every_policy_but_last() -> None:
    words = tokenizer()
    gpt2 = GPT2Config(vocab_size=len(words), n_embd=32, n_layer=2, n_head=2, n_positions=64)

    def built(**settings: Any) -> LanguageModel:
        return LanguageModel(AutoModelForCausalLM.from_config(gpt2), words, **settings)

    assert built(train="embeddings").causal_lm.get_input_embeddings().weight.requires_grad
    learns = {name for name, p in built(train="norms").named_parameters() if p.requires_grad}
    assert {"model.transformer.h.1.ln_2.weight", "model.transformer.ln_f.bias"} <= learns
    assert len(learns) == 10
    assert built(prefix=Prefix(2)).prefix_states is not None
    with pytest.raises(ValueError, match="layers"):
        built(train="last:1")


def test_an_adapter_on_the_embedding_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"targets \['q_proj', 'embed_tokens'\] takes in the embedding table.*train="):
        language(lora=Lora(rank=2, targets=["q_proj", "embed_tokens"]))
    learns = {n for n, p in language(lora=Lora(rank=2), train="lora+embeddings").named_parameters() if p.requires_grad}
    assert "model.base_model.model.model.embed_tokens.weight" in learns


def test_a_name_becomes_a_model_only_when_it_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub path is a folder's path to the letter; a refusal of the Hub comes out with the way out."""
    from transformers import AutoModelForCausalLM

    source = Pretrained("meta-llama/Llama-2-7b-hf", lora=Lora(rank=2))  # nothing happens here
    asked = []

    def refused(name: str, **settings: object) -> None:
        asked.append(name)
        raise OSError(f"You are trying to access a gated repo.\n401 Client Error for {name}")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refused)
    with pytest.raises(ValueError, match=r"'meta-llama/Llama-2-7b-hf' is gated .*huggingface.co/meta-llama.*hf auth"):
        source.build()
    assert asked == ["meta-llama/Llama-2-7b-hf"]
    monkeypatch.undo()
    language().causal_lm.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    real = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", partial(_counting, real, asked))
    built = Pretrained(str(tmp_path), lora=Lora(rank=2), dtype="bfloat16").build()
    assert asked[-1] == str(tmp_path)
    assert built.causal_lm.dtype == torch.bfloat16
    assert {p.dtype for n, p in built.named_parameters() if "lora_" in n} == {torch.float32}


def _counting(real: object, asked: list[str], name: str, **settings: object) -> object:
    asked.append(name)
    return real(name, **settings)


@pytest.mark.parametrize("kind", [{}, {"dora": True}, {"dropout": 0.5}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_computes_what_pefts_own_layer_computes(kind: dict[str, Any], dtype: torch.dtype) -> None:
    """The scale stands elsewhere, which rounds nothing when it is 2; adapters that are merged go peft's way."""
    from peft.tuners.lora import Linear

    model = language(lora=Lora(rank=2, alpha=3 if dtype == torch.float32 else 4, **kind))
    model.causal_lm.to(dtype)
    layer = next(module for module in model.modules() if type(module) is Linear)
    assert ("forward" in vars(layer)) == (not kind.get("dora", False))
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    x, found = torch.randn(2, 5, layer.in_features, dtype=dtype, requires_grad=True), []
    for forward in (layer.forward, partial(Linear.forward, layer)):
        torch.manual_seed(0)
        layer.zero_grad()
        given = forward(x)
        (slope,) = torch.autograd.grad(given.float().square().sum(), x, retain_graph=True)
        given.float().square().sum().backward()
        found.append([given.detach(), slope, *[p.grad for p in layer.parameters() if p.grad is not None]])
    for expected, one in zip(*found, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)
    layer.eval()
    before = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), before, rtol=0.05, atol=0.3 if dtype == torch.bfloat16 else 1e-5)


def test_under_autocast_adapters_hold_one_input_and_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bfloat16 base with fp32 adapters, as large models are trained; values are those of peft's layer to the bit."""
    from peft.tuners.lora import Linear

    # The hooks that count here are none of checkpointing's, for which nothing would be made again.
    monkeypatch.setattr("vol3d.model.rebuilding._may_rebuild", torch.is_grad_enabled)
    model = language(lora=Lora(rank=2, alpha=4))
    model.causal_lm.to(torch.bfloat16)
    layers = [module for module in model.modules() if type(module) is Linear]
    for layer in layers:
        layer.lora_A.float()
        torch.nn.init.normal_(layer.lora_B.float()["default"].weight)
    embeds, labels, found, inputs = torch.randn(2, 24, 32, dtype=torch.bfloat16), torch.randint(5, 20, (2, 24)), [], []
    for own in (True, False):
        for layer in () if own else layers:
            del layer.forward
        kept: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor, kept: dict[int, torch.Tensor] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        model.zero_grad()
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with torch.autocast("cpu", torch.bfloat16), hooks:
            loss = model.loss(embeds, torch.ones_like(labels), labels)
        loss.backward()
        found.append([loss.detach(), *[p.grad for p in model.parameters() if p.grad is not None]])
        inputs.append(sum(tensor.shape in {(48, 32), (48, 48)} for tensor in kept.values()))
    for expected, one in zip(*found, strict=True):
        torch.testing.assert_close(one, expected, rtol=0, atol=0)
    # A layer's q, k and v share one input, gate and up another, and o has its own; down's is made again.
    assert inputs[0] <= 3 * 3
    assert inputs[1] >= 3 * 6
