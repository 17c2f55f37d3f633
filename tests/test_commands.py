"""The verbs' options: each does what it says, and what is asked for in vain is refused before any work."""

import argparse
from pathlib import Path

import pytest
from toy_models import Says, toy

import vol3d
from vol3d import cli
from vol3d.cli import main
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
    pytest.importorskip("blosc2")
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
        ({"base": tmp_path / "other"}, r"other has predicted none of these \d+ studies"),
    ):
        with pytest.raises((ValueError, OSError), match=said):
            evaluate(model, manifest, out=tmp_path / "out", replicates=20, **asked)
    assert not (tmp_path / "out").exists()
