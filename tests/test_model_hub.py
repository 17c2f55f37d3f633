"""Models by name: BERTs under names of their own, and code beside weights, which is never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_language import PROMPTS, REPORTS, SIZES, tokenizer, volume_lm

import vol3d
from vol3d.model.hub import causal_lm_without_weights, load_causal_lm
from vol3d.model.language import Lora, Pretrained
from vol3d.model.pretrained import build, save
from vol3d.model.text_encoder import PretrainedText
from vol3d.model.volume_lm import VolumeLM

SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
WORDS = [*SPECIAL.values(), "liver", "normal"]


def edited(path: Path, **more: Any) -> None:
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(settings | more))


@pytest.fixture
def cxr_bert(tmp_path: Path) -> Path:
    """Tiny weights and files as microsoft/BiomedVLP-CXR-BERT-specialized has them; its code prints when it is run."""
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(tmp_path)
    edited(
        tmp_path / "config.json",
        model_type="cxr-bert",
        architectures=["CXRBertModel"],
        auto_map={"AutoConfig": "configuration_cxrbert.CXRBertConfig", "AutoModel": "modeling_cxrbert.CXRBertModel"},
    )
    auto_map = {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]}
    edited(
        tmp_path / "tokenizer_config.json", do_lower_case=True, tokenizer_class="CXRBertTokenizer", auto_map=auto_map
    )
    edited(tmp_path / "tokenizer_config.json", **SPECIAL)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    for name in ("configuration_cxrbert.py", "modeling_cxrbert.py"):
        (tmp_path / name).write_text("raise SystemExit('code beside the weights ran')\n")
    return tmp_path


def test_a_bert_under_a_name_of_its_own_is_read_as_bert(cxr_bert: Path) -> None:
    from transformers import BertModel

    tower = PretrainedText.load(str(cxr_bert)).eval()
    assert tower.spec["config"]["model_type"] == "bert"
    ids = [[WORDS.index(word) for word in ("[CLS]", "liver", "normal", "[UNK]", "[SEP]")]]
    expected = BertModel.from_pretrained(cxr_bert).eval()(torch.tensor(ids)).last_hidden_state.mean(1)
    torch.testing.assert_close(tower(["Liver NORMAL foo"]), expected)
    again = PretrainedText(**tower.spec).eval()
    again.load_state_dict(tower.state_dict())
    torch.testing.assert_close(again(["Liver NORMAL foo"]), expected)


def test_what_is_called_bert_and_is_none_is_refused(cxr_bert: Path) -> None:
    edited(cxr_bert / "config.json", num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"text encoder .* could not be loaded \(as a BERT it lacks 16 of 39 "):
        PretrainedText.load(str(cxr_bert))


def test_code_beside_weights_is_neither_run_nor_asked_about(cxr_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    edited(cxr_bert / "config.json", model_type="radllm", architectures=["RadLLM"])
    wrong = r"needs Python code that lies beside its weights .* vol3d does not run: name a model of an architecture"
    with pytest.raises(ValueError, match=f"text encoder .* {wrong}"):
        PretrainedText.load(str(cxr_bert))
    for load in (load_causal_lm, causal_lm_without_weights):
        with pytest.raises(ValueError, match=f"language model .* {wrong}"):
            load(str(cxr_bert))


def test_a_known_architecture_is_transformers_own_whatever_lies_beside_it(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer()
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **SIZES)).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    edited(tmp_path / "config.json", auto_map={"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.OwnConfig"})
    (tmp_path / "own.py").write_text("raise SystemExit('code beside the weights ran')\n")
    assert type(load_causal_lm(str(tmp_path))[0]) is LlamaForCausalLM
    assert type(causal_lm_without_weights(str(tmp_path))[0]) is LlamaForCausalLM


def test_weights_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    """transformers would fill up what is missing with random numbers, or lay an adapter on top that nothing saves."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaModel

    words = tokenizer()
    settings = LlamaConfig(vocab_size=len(words), **SIZES)
    for name in ("headless", "whole", "adapter"):
        words.save_pretrained(tmp_path / name)
    LlamaModel(settings).save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"headless' could not be loaded \(its weights lack 1 of 30 tensors \['lm_h"):
        load_causal_lm(str(tmp_path / "headless"))
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "whole")
    model, _ = load_causal_lm(str(tmp_path / "whole"))
    get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"adapter' is an adapter beside its base's weights: .*merge_and_unload\(\)"):
        load_causal_lm(str(tmp_path / "adapter"))


def test_of_a_model_that_also_sees_the_language_model_alone_is_taken(tmp_path: Path) -> None:
    """As MedGemma is published: an image tower of its own, whose adapters no loss would reach."""
    from transformers import AutoModelForCausalLM, Gemma3Config

    words = tokenizer()
    text = {"vocab_size": len(words), **SIZES, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6}
    sees = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    sees |= {"image_size": 28, "patch_size": 14}
    both = AutoModelForCausalLM.from_config(Gemma3Config(text_config=text, vision_config=sees)).eval()
    both.generation_config.eos_token_id = [1, 106]
    both.save_pretrained(tmp_path / "both")
    words.save_pretrained(tmp_path / "both")
    language = Pretrained(str(tmp_path / "both"), lora=Lora(rank=2)).build().eval()
    assert {name for name, _ in language.named_parameters() if "vision" in name} == set()
    assert 106 in language.stop_ids
    ids = torch.tensor([[1, 5, 6, 7, 8, 9, 10, 11]])
    torch.testing.assert_close(language.causal_lm(ids).logits, both(ids).logits, rtol=0, atol=0)
    model = volume_lm()
    model = VolumeLM(model.encoder, model.projector, language)
    features = model.encode(torch.randn(2, 1, 8, 8, 8))
    model.language_loss(features, PROMPTS, REPORTS[:2]).backward()
    assert all(p.grad is not None for p in language.parameters() if p.requires_grad)
    said = model.generate(features, PROMPTS, max_new_tokens=8)
    assert model.generate(features, PROMPTS, max_new_tokens=8, lean=False) == said
    grid = vol3d.Grid(spacing=(1, 1, 1), shape=(8, 8, 8), window=[(-100, 100)])
    again = build(save(tmp_path / "model", model.eval(), {}, grid, merge=True))[0]
    assert again.generate(features, PROMPTS, max_new_tokens=8) == said
