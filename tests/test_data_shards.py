"""Shards of a manifest: together the whole, no study twice, patients whole; jobs run twice change nothing."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vol3d
from vol3d.cli import main
from vol3d.data.cache import VolumeCache
from vol3d.data.manifest import Manifest
from vol3d.data.shards import merge_predictions, missing, parse_shard, shard, shard_of_file, shard_of_job, write_shards
from vol3d.data.study import Study
from vol3d.on_ray import on_ray
from vol3d.volume.grid import Grid

ONE = Path("image.nii.gz")


def studies(patients: list[int]) -> Manifest:
    return Manifest(
        Study(study=f"s{number}", patient=f"p{patient}", image=ONE) for number, patient in enumerate(patients)
    )


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 7))
def test_shards_are_the_whole_and_keep_patients_together(patients: list[int], count: int) -> None:
    manifest = studies(patients)
    parts = [shard(manifest, index, count) for index in range(count)]
    assert sorted(s.study for part in parts for s in part) == sorted(s.study for s in manifest)
    owners = [set(part.patients) for part in parts]
    assert sum(map(len, owners)) == len(set().union(*owners)), "a patient's studies stay in one shard"
    assert max(map(len, owners)) - min(map(len, owners)) <= 1


def test_rows_added_later_move_no_earlier_study() -> None:
    before, after = studies([0, 1, 2, 1]), studies([0, 1, 2, 1, 5, 0, 6])
    for index in range(3):
        names = [s.study for s in shard(before, index, 3)]
        assert [s.study for s in shard(after, index, 3)][: len(names)] == names


@pytest.mark.parametrize(("text", "said"), [("3", "'3' is not of the form I/N"), ("4/4", "shard 4 of 4.*0 to 3")])
def test_a_wrong_shard_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_shard(text)
    assert parse_shard("3/4") == (3, 4)


def test_the_shard_of_a_slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shard_of_job() is None
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    assert shard_of_job() == (3, 4)
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    with pytest.raises(ValueError, match=r"job 3 of an array of 4 that begins at 1.*--array=0-3"):
        shard_of_job()


def test_an_array_of_jobs_fills_one_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = vol3d.phantom.write(tmp_path / "phantoms", studies=5, seed=1, shape=(32, 32, 16))
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    bad = next(row for row in rows if row["study"] == shard(Manifest.read(manifest), 1, 2)[0].study)
    (manifest.parent / bad["image"]).write_bytes(b"no image")

    grid = Grid(name="small", spacing=(26.0, 26.0, 26.0), shape=(16, 16, 8))
    grid.save(tmp_path / "grid.json")
    first, second = (prepare_small(index, manifest, tmp_path, capsys) for index in (0, 1))
    assert (first["made"], first["failed"], second["made"], second["failed"]) == (3, 0, 1, 1)
    again = prepare_small(0, manifest, tmp_path, capsys)
    assert (again["made"], again["ready"]) == (0, 3)
    assert bad["study"] in Path(str(second["failures"])).read_text(), "another shard's success takes no list away"


def test_a_file_that_is_a_shard_is_taken_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array of jobs, each with its own file of `write_shards`: together all studies, and a list of failures each."""
    manifest = vol3d.phantom.write(tmp_path / "phantoms", studies=4, seed=1, shape=(32, 32, 16))
    files = write_shards(manifest, tmp_path / "shards", 2)
    for path in files:
        assert shard(Manifest.read(path), *shard_of_file(path)).studies == Manifest.read(path).studies
    (Path(Manifest.read(files[0])[0].image)).write_bytes(b"no image")
    grid = Grid(name="small", spacing=(26.0, 26.0, 26.0), shape=(16, 16, 8))
    grid.save(tmp_path / "grid.json")
    options = ["--grid", str(tmp_path / "grid.json"), "--cache", str(tmp_path / "cache"), "--workers", "0"]
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    for index, said in enumerate(["shard 0/2: 2 studies: 1 made, 0 were ready, 1 failed", "shard 1/2: 2 studies: 2 m"]):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(index))
        assert main(["prepare", str(files[index]), *options]) == 1 - index
        assert capsys.readouterr().out.startswith(said)
    assert main(["prepare", str(files[1]), *options, "--shard", "1/3"]) == 0
    assert capsys.readouterr().out.startswith("shard 1/3: 1 studies: 0 made, 1 were ready")
    assert [path.name for path in (tmp_path / "cache").rglob("failures*")] == ["failures-0000-of-0002.jsonl"]


def prepare_small(index: int, manifest: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    options = ["--grid", str(folder / "grid.json"), "--cache", str(folder / "cache"), "--workers", "0"]
    main(["prepare", str(manifest), *options, "--shard", f"{index}/2", "--json"])
    return json.loads(capsys.readouterr().out)


class Ray:
    """Ray's four names, run where one stands."""

    def __init__(self) -> None:
        self.asked: dict[str, float] = {}

    def is_initialized(self) -> bool:
        return True

    def remote(self, **resources: float) -> Callable[[Any], Any]:
        self.asked = resources
        return lambda function: SimpleNamespace(remote=function)

    def get(self, results: list[int]) -> list[int]:
        return results


def test_ray_runs_the_commands_of_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = vol3d.phantom.write(tmp_path / "phantoms", studies=3, seed=1, shape=(32, 32, 16))
    Grid(name="small", spacing=(26.0, 26.0, 26.0), shape=(16, 16, 8)).save(tmp_path / "grid.json")
    command = ["prepare", str(manifest), "--grid", str(tmp_path / "grid.json"), "--cache", str(tmp_path / "cache")]
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "vol3d\[ray\]"'):
        on_ray([*command, "--shard", "{shard}"], 2)
    ray = Ray()
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(ValueError, match=r"say where the shard goes, as in --shard \{shard\}"):
        on_ray(command, 2)
    assert on_ray([*command, "--shard", "{shard}", "--workers", "0"], 2, cpus=3) == [0, 0]
    assert ray.asked == {"num_cpus": 3, "num_gpus": 0}
    grid = Grid.load(tmp_path / "grid.json")
    assert VolumeCache(tmp_path / "cache", grid).fill(Manifest.read(manifest)).ready == 3


def test_predictions_are_made_of_one_part(tmp_path: Path) -> None:
    manifest = vol3d.phantom.write(tmp_path, studies=6, seed=1, shape=(32, 32, 16), split=(0, 0, 6))
    parts = [vol3d.VolumeData(manifest, "merlin", shard=f"{index}/4").dataset("predict") for index in range(4)]
    assert [len(part) for part in parts] == [2, 2, 1, 1]
    assert len({study.study for part in parts for study in part.manifest}) == 6
    assert len(vol3d.VolumeData(manifest, "merlin", shard="0/4").dataset("test")) == 6
    assert len(vol3d.VolumeData(manifest, "merlin", shard="6/7").dataset("predict")) == 0
    train = Manifest(replace(study, split="train") for study in Manifest.read(manifest))
    with pytest.raises(ValueError, match=r"no study of the split 'test' in .*: add a split to its rows"):
        vol3d.VolumeData(train, "merlin", shard="0/4").dataset("predict")
    with pytest.raises(ValueError, match="shard 4 of 4"):
        vol3d.VolumeData(manifest, "merlin", shard="4/4")


def test_prepare_wants_a_grid_or_an_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "manifest.jsonl", "--cache", "cache"]) == 2
    assert "one of --grid" in capsys.readouterr().err


def test_shards_as_files(tmp_path: Path) -> None:
    manifest = vol3d.phantom.write(tmp_path / "phantoms", studies=5, seed=1, shape=(32, 32, 16))
    paths = write_shards(manifest, tmp_path / "phantoms", 2)
    assert [path.name for path in paths] == ["shard-0000-of-0002.jsonl", "shard-0001-of-0002.jsonl"]
    whole = Manifest.read(manifest)
    read = [study for path in paths for study in Manifest.read(path)]
    assert {s.study: s.image for s in read} == {s.study: s.image for s in whole}
    with pytest.raises(ValueError, match="5 patients cannot be dealt to 6 shards"):
        write_shards(manifest, tmp_path, 6)


def written(path: Path, rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps({"study": name, "report": text}) + "\n" for name, text in rows.items()))
    return path


def test_predictions_are_merged_in_order_and_each_once(tmp_path: Path) -> None:
    one = written(tmp_path / "1.jsonl", {"s2": "b", "s0": "a"})
    two = written(tmp_path / "2.jsonl", {"s1": "c", "s0": "a"})
    out = merge_predictions([one, two], tmp_path / "all.jsonl", ["s0", "s1", "s2", "s3"])
    assert [json.loads(line)["study"] for line in out.read_text().splitlines()] == ["s0", "s1", "s2"]
    assert missing(out, ["s0", "s1", "s2", "s3"]) == ["s3"]
    written(two, {"s0": "other"})
    with pytest.raises(ValueError, match=r"'s0' is predicted in 1.jsonl and otherwise in 2.jsonl, line 1"):
        merge_predictions([one, two], out)
    two.write_text('{"study": "s5", "rep')
    with pytest.raises(ValueError, match=r"2.jsonl, line 1 is cut off"):
        merge_predictions([one, two], out)
