"""A saved model: the folder of the contract, the same outputs after loading, and nothing half-written."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import vol3d
from vol3d.model.language import Lora, Pretrained
from vol3d.model.pretrained import build, save
from vol3d.tasks import FindingMaps, ReportGeneration

REPORTS = ["The liver is normal.", "There is a left pleural effusion."]
GRID = vol3d.Grid(spacing=(4, 4, 8), shape=(16, 16, 8), window=[(-1000, 1000), (-160, 240)])


def language(lora: Lora | None, folder: Path) -> vol3d.LanguageModel:
    scratch = vol3d.LanguageModel.scratch(REPORTS, embed_dim=32, depth=1, num_heads=2)
    if lora is None:
        return scratch
    config = LlamaConfig(
        vocab_size=len(scratch.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    scratch.tokenizer.save_pretrained(folder)
    return Pretrained(str(folder), lora=lora).build()


def parts(lora: Lora | None, folder: Path) -> tuple[vol3d.VolumeLM, dict]:
    model = vol3d.VolumeLM(
        vol3d.encoders.create("vit3d-tiny", in_channels=2, embed_dim=24, depth=1, num_heads=2, patch_size=(4, 4, 4)),
        partial(vol3d.PerceiverProjector, num_latents=4, num_heads=2),
        language(lora, folder),
    ).eval()
    tasks = {"report": ReportGeneration(model, max_new_tokens=8), "findings": FindingMaps(model, findings=["ascites"])}
    return model, tasks


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4)], ids=["scratch", "lora"])
def test_saved_and_loaded_gives_the_same_logits_and_predictions(tmp_path: Path, lora: Lora | None) -> None:
    model, tasks = parts(lora, tmp_path / "lm")
    with torch.no_grad():  # adapters start at zero: give them something to lose
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    save(tmp_path / "model", model, tasks, GRID, card="# card")
    again, heads, grid = build(tmp_path / "model")
    assert grid == GRID
    image = torch.randn(2, 2, 16, 16, 8)
    prompts = ["<volume>Report:"] * 2
    expected = model.language_loss(model.encode(image), prompts, REPORTS)
    torch.testing.assert_close(again.language_loss(again.encode(image), prompts, REPORTS), expected, rtol=0, atol=0)
    assert heads["findings"].findings == ["ascites"]
    assert again.generate(again.encode(image), prompts, max_new_tokens=8) == model.generate(
        model.encode(image), prompts, max_new_tokens=8
    )


def test_the_folder_is_the_contract_s_and_holds_no_pickle(tmp_path: Path) -> None:
    save(tmp_path / "model", *parts(None, tmp_path), GRID, card="# card")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.yaml", "model.safetensors", "grid.json", "card.md", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")) for name in names)
    assert json.loads((tmp_path / "model" / "grid.json").read_text())["spacing"] == [4, 4, 8]
    assert "vol3d.encoders.ViT3D" in (tmp_path / "model" / "config.yaml").read_text()


def test_a_failed_save_leaves_the_old_model_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tasks = parts(None, tmp_path)
    save(tmp_path / "model", model, tasks, GRID, card="old")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "model", model, tasks, GRID, card="new")
    assert (tmp_path / "model" / "card.md").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    (tmp_path / "thesis" / "config.yaml").write_text("of something else")
    with pytest.raises(ValueError, match="exists and is not a saved model"):
        save(tmp_path / "thesis", *parts(None, tmp_path), GRID)
    assert (tmp_path / "thesis" / "chapter1.txt").exists()


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a saved vol3d model: it has no config.yaml, model.safetensors"):
        vol3d.load(tmp_path)
    save(tmp_path / "model", *parts(None, tmp_path), GRID)
    config = tmp_path / "model" / "config.yaml"
    config.write_text(config.read_text().replace("embed_dim: 24", "embed_dim: 48"))
    with pytest.raises((ValueError, RuntimeError), match=r"24.*48|48.*24"):
        vol3d.load(tmp_path / "model")
    config.write_text(config.read_text().replace("vol3d.encoders.ViT3D", "subprocess.Popen"))
    with pytest.raises(ValueError, match=r"subprocess.Popen is not a Encoder"):
        vol3d.load(tmp_path / "model")


def test_inference_prepares_by_the_card_and_refuses_bare_tensors(tmp_path: Path) -> None:
    save(tmp_path / "model", *parts(None, tmp_path), GRID)
    model = vol3d.load(tmp_path / "model")
    from monai.data import MetaTensor

    hu = np.random.default_rng(0).integers(-1000, 400, (1, 20, 18, 9)).astype(np.float32)
    affine = torch.diag(torch.tensor([-4.0, 4.0, 8.0, 1.0], dtype=torch.float64))
    vol3d.write(MetaTensor(torch.from_numpy(hu), affine=affine), tmp_path / "ct.nii.gz")
    sample = model.sample(tmp_path / "ct.nii.gz")
    assert sample.hu.shape == (1, 16, 16, 8)
    assert model.report(tmp_path / "ct.nii.gz") == model.report(vol3d.read(tmp_path / "ct.nii.gz"))
    with pytest.raises(ValueError, match=r"Tensor of shape \(1, 16, 16, 8\) without geometry"):
        model.report(torch.zeros(1, 16, 16, 8))
    with pytest.raises(ValueError, match="got a NoneType without geometry"):
        model.report(None)
    ready = vol3d.Grid(spacing=(2, 2, 2), shape=(16, 16, 8), window=(-1000, 1000))(vol3d.read(tmp_path / "ct.nii.gz"))
    with pytest.raises(ValueError, match=r"ct.nii.gz: values from \S+ to \S+ are no HU but what a window"):
        model.report(ready)
    foreign = MetaTensor(torch.from_numpy(hu) / 2000, affine=affine)
    with pytest.raises(ValueError, match=r"values from -0\.\S+ to 0\.\S+ are no HU"):
        model.report(foreign)
    with pytest.raises(ValueError, match=r"was not trained for 'codes'; it predicts report"):
        model._task("codes")
