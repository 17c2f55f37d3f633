"""The verbs' options: each does what it says, and what is asked for in vain is refused before any work."""

import argparse
import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_models import Says, toy

import vol3d
from vol3d import cli
from vol3d.cli import main
from vol3d.commands.command import Command
from vol3d.evaluation.run import evaluate
from vol3d.model.pretrained import save
from vol3d.model.volume_lm import VolumeLM
from vol3d.volume.grid import Grid

VERBS = next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
MANY = [
    (verb, action.option_strings[0])
    for verb, parser in VERBS.items()
    for action in parser._actions
    if action.option_strings and action.nargs in ("*", "+")
]


@pytest.mark.parametrize(("verb", "option"), MANY)
def test_an_option_of_several_values_may_be_given_again(verb: str, option: str) -> None:
    action = next(a for a in VERBS[verb]._actions if option in a.option_strings)
    parser = argparse.ArgumentParser()
    parser._add_action(action)
    for _ in range(2):  # and leaves its default as it was
        found = parser.parse_args([option, "a=1", option, "b=2", "c=3"])
        assert getattr(found, action.dest) == ["a=1", "b=2", "c=3"]


def test_features_are_prepared_beside_compressed_volumes(tmp_path: Path) -> None:
    pytest.importorskip("blosc2", reason='needs pip install "vol3d[blosc2]"')
    manifest = vol3d.phantom.write(tmp_path / "data", studies=2, seed=3, shape=(32, 32, 16))
    encoder = vol3d.encoders.create("vit3d-tiny", embed_dim=24, depth=1, num_heads=1, patch_size=(4, 4, 2))
    grid = Grid(name="small", spacing=(13.0, 13.0, 26.0), shape=(16, 16, 8))
    model = save(tmp_path / "model", VolumeLM(encoder), {}, grid)
    sizes = {}
    for name, more in {"plain": [], "packed": ["--compression", "blosc2"]}.items():
        cache = tmp_path / name
        assert main(["prepare", str(manifest), "--features", str(model), "--cache", str(cache), *more]) == 0
        entries = [path for path in cache.rglob("*.safetensors") if "features" not in path.parts]
        assert len(entries) == 2
        sizes[name] = sum(path.stat().st_size for path in entries)
    assert sizes["packed"] < sizes["plain"]


def test_what_an_evaluation_cannot_give_is_refused_before_a_volume_is_shown(tmp_path: Path) -> None:
    model, manifest = toy(Says())
    model.predict = None
    (tmp_path / "other").mkdir()
    (tmp_path / "other/predictions.jsonl").write_text('{"study": "nobody", "report": "x"}\n')
    for asked, said in (
        ({"probes": ["blnk"]}, "unknown probes blnk: choose from blank, "),
        ({"by": ["sexx"]}, r"studies has meta\.sexx; there is "),
        ({"base": tmp_path / "nothing"}, "nothing"),
        ({"base": tmp_path / "other"}, r"other has \d+ studies, \d+ are scored here, 0 of them are in both"),
    ):
        with pytest.raises((ValueError, OSError), match=said):
            evaluate(model, manifest, out=tmp_path / "out", replicates=20, **asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("report model ct.nii.gz", "another GPU (--device cuda:1) or --device cpu"),
        ("embed model m.jsonl -o index", "a smaller --batch-size, another GPU (--device cuda:1) or --device cpu"),
        ("info", None),
    ],
)
def test_memory_that_does_not_suffice_names_only_what_the_verb_has(
    argv: str, said: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    verb = argv.split()[0]
    monkeypatch.delenv("VOL3D_DEBUG", raising=False)
    monkeypatch.setitem(cli.COMMANDS, verb, Command("", "", cli.COMMANDS[verb].arguments, full))
    assert main(argv.split()) == 2
    assert capsys.readouterr().err == f"vol3d: CUDA out of memory{f': give {said}' if said else ''}\n"


def test_output_that_cannot_hold_every_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", shown)
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    monkeypatch.setitem(
        cli.COMMANDS, "info", Command("", "", lambda _: None, lambda _: SimpleNamespace(text="−1", code=0))
    )
    assert main(["info"]) == 0
    shown.flush()
    text = shown.buffer.getvalue().decode("latin-1")
    assert re.search(r"phantoms \? train", text)
    assert text.endswith("?1\n")
