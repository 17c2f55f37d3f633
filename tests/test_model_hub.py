"""Models by name: BERTs under names of their own, and code beside weights, which is never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_language import SIZES, tokenizer

from vol3d.model.hub import causal_lm_without_weights, load_causal_lm
from vol3d.model.text_encoder import PretrainedText

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
