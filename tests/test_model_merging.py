"""Weights between two models: the ends, the middle, adapters, and what may not be mixed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import vol3d
from vol3d.cli import main
from vol3d.model.language import Lora, Pretrained
from vol3d.model.merging import merge
from vol3d.model.pretrained import build, save
from vol3d.tasks import EHRCodes, FindingMaps, ReportGeneration

REPORTS = ["The liver is normal.", "There is a left pleural effusion."]
GRID = vol3d.Grid(spacing=(4, 4, 8), shape=(16, 16, 8), window=[(-1000, 1000)])
PROMPTS = ["<volume>Report:"] * 2
IMAGE = torch.randn(2, 1, 16, 16, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained language model."""
    folder = tmp_path_factory.mktemp("lm")
    scratch = vol3d.LanguageModel.scratch(REPORTS, embed_dim=32, depth=1, num_heads=2)
    config = LlamaConfig(
        vocab_size=len(scratch.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    scratch.tokenizer.save_pretrained(folder)
    return folder


def write(folder: Path, words: Path, seed: int, *, lora: Lora | None = None, depth: int = 1, **extra: object) -> Path:
    """A saved model whose own weights come from `seed`."""
    torch.manual_seed(seed)
    model = vol3d.VolumeLM(
        vol3d.encoders.create("vit3d-tiny", embed_dim=24, depth=depth, num_heads=2, patch_size=(4, 4, 4)),
        partial(vol3d.PerceiverProjector, num_latents=4, num_heads=2),
        Pretrained(str(words), lora=lora).build(),
    )
    with torch.no_grad():
        for name, parameter in model.language.named_parameters():
            if "lora_" in name if lora else name.endswith("mlp.up_proj.weight"):
                parameter.normal_()
    tasks = {"report": ReportGeneration(model), "findings": FindingMaps(model, findings=["ascites"]), **extra}
    return save(folder, model, tasks, GRID, card=f"# model {seed}")


def state(folder: Path) -> dict[str, torch.Tensor]:
    model, tasks, _ = build(folder)
    return torch.nn.ModuleDict({"model": model, "tasks": torch.nn.ModuleDict(tasks)}).state_dict()


@torch.no_grad()
def loss(folder: Path) -> float:
    model = build(folder)[0]
    return model.language_loss(model.encode(IMAGE), PROMPTS, REPORTS).item()


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory, words: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ends")
    return write(folder / "base", words, 1), write(folder / "tuned", words, 2)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_the_ends_and_what_lies_between(ends: tuple[Path, Path], tmp_path: Path, alpha: float) -> None:
    base, tuned = map(state, ends)
    merged = state(merge(*ends, tmp_path / "merged", alpha=alpha))
    assert merged.keys() == base.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (1 - alpha) * base[name] + alpha * tuned[name], rtol=1e-6, atol=1e-7)
        if alpha in (0.0, 1.0):
            assert torch.equal(tensor, (base, tuned)[int(alpha)][name]), name
    assert any((base[name] != tuned[name]).any() for name in base)


def test_an_adapter_counts_by_what_it_does(tmp_path: Path, words: Path) -> None:
    """At the ends the adapted models' own losses; in the middle the mean of the products, not of the factors."""
    lora = Lora(rank=2, alpha=4, targets=["q_proj", "up_proj"])
    base, tuned = write(tmp_path / "base", words, 1, lora=lora), write(tmp_path / "tuned", words, 2, lora=lora)
    for alpha, end in ((0.0, base), (1.0, tuned)):
        assert loss(merge(base, tuned, tmp_path / "end", alpha=alpha)) == pytest.approx(loss(end), rel=1e-5)
    merged = merge(base, tuned, tmp_path / "middle", alpha=0.5)
    assert build(merged)[0].language.lora is None
    name = "model.language.model.model.layers.0.mlp.up_proj.weight"
    wanted = []
    for folder in (base, tuned):
        layer = build(folder)[0].language.causal_lm.model.layers[0].mlp.up_proj
        wanted.append(layer.base_layer.weight + layer.get_delta_weight("default"))
    torch.testing.assert_close(state(merged)[name], (wanted[0] + wanted[1]) / 2)
    plain = write(tmp_path / "plain", words, 3)
    assert merge(plain, tuned, tmp_path / "mixed", alpha=0.5).is_dir(), "an adapter and its plain base"


def test_a_task_that_one_has_is_kept(ends: tuple[Path, Path], tmp_path: Path, words: Path) -> None:
    torch.manual_seed(3)
    codes = EHRCodes(build(ends[0])[0], codes=["507"])
    tuned = write(tmp_path / "tuned", words, 3, codes=codes)
    merged = state(merge(ends[0], tuned, tmp_path / "merged", alpha=0.3))
    assert torch.equal(merged["tasks.codes.head.head.weight"], state(tuned)["tasks.codes.head.head.weight"])


def test_counts_are_those_of_the_tuned_model(tmp_path: Path, words: Path) -> None:
    """What a code was weighted by in training corrects its probabilities; the tuned model went on from the base's."""
    ends = []
    for seed, seen in ((1, 10), (2, 30)):
        codes = EHRCodes(build(write(tmp_path / "any", words, seed))[0], codes=["507"], weighting="prevalence")
        codes.seen.fill_(seen)
        ends.append(write(tmp_path / str(seed), words, seed, codes=codes))
    assert state(merge(*ends, tmp_path / "merged", alpha=0.3))["tasks.codes.seen"].tolist() == [[30], [30]]


def test_models_that_differ_in_more_than_weights(ends: tuple[Path, Path], tmp_path: Path, words: Path) -> None:
    deep = write(tmp_path / "deep", words, 1, depth=2)
    with pytest.raises(ValueError, match=r"encoder\.init_args\.depth is 1 in .*base and 2 in .*deep: weights can be"):
        merge(ends[0], deep, tmp_path / "out")
    model, tasks, _ = build(ends[1])
    wide = vol3d.Grid(spacing=(4, 4, 8), shape=(16, 16, 8), window=[(-160, 240)])
    save(tmp_path / "wide", model, tasks, wide)
    with pytest.raises(ValueError, match=r"grid\.window is .*1000.* in .*base and .*240.* in .*wide"):
        merge(ends[0], tmp_path / "wide", tmp_path / "out")
    model.language.tokenizer.add_tokens(["splenule"])
    save(tmp_path / "words", model, tasks, GRID)
    with pytest.raises(ValueError, match=r"the tokenizer of .*base has \d+ tokens, that of .*words \d+, and 1 of them"):
        merge(ends[0], tmp_path / "words", tmp_path / "out")
    with pytest.raises(ValueError, match=r"alpha is 1\.5: give the tuned model's share"):
        merge(*ends, tmp_path / "out", alpha=1.5)
    with pytest.raises(ValueError, match="is not a saved vol3d model"):
        merge(ends[0], tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(ends: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "merged"
    assert main(["merge", *map(str, ends), str(out), "--alpha", "0.25", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": str(out), "alpha": 0.25}
    card = (out / "card.md").read_text()
    assert "0.25 · tuned + 0.75 · base" in card
    assert "# model 1" in card
    assert "# model 2" in card
