"""Comparing two evaluations, correcting for many scores, groups of studies, coverage curves."""

import json
from pathlib import Path

import pytest

from vol3d.data.manifest import Manifest
from vol3d.data.study import Study
from vol3d.evaluation.abstention import selective_accuracy
from vol3d.evaluation.compare import compare, holm
from vol3d.evaluation.compare_words import compare_texts
from vol3d.evaluation.groups import by_subgroup
from vol3d.evaluation.sides import Sides

ILL = "FINDINGS:\nThere is moderate ascites.\n\nIMPRESSION:\nAscites."
WELL = "FINDINGS:\nNo ascites.\n\nIMPRESSION:\nNormal examination."
TRUTHS = [ILL, WELL] * 20


def test_the_better_model_wins():
    studies = [
        Study(study=f"s{i}", image=Path("x.nii.gz"), patient=f"p{i}", report=text) for i, text in enumerate(TRUTHS)
    ]
    poor = [WELL if i % 4 == 0 else text for i, text in enumerate(TRUTHS)]  # misses half of the ascites
    rows = [{f"s{i}": {"report": text} for i, text in enumerate(texts)} for texts in (TRUTHS, poor)]
    got = compare_texts("report")(Sides(studies, *rows, replicates=300))
    assert got["finding_f1"]["value"] == pytest.approx(1 - 2 / 3)
    assert (got["finding_f1"]["first"], got["finding_f1"]["second"]) == (1, pytest.approx(2 / 3))
    assert got["finding_f1"]["low"] > 0
    assert got["finding_f1"]["p"] < 0.05
    assert got["bleu_1"]["low"] > 0
    assert (got["wins"], got["losses"], got["ties"], got["counted"]) == (10, 0, 30, "studies")
    back = compare_texts("report")(Sides(studies, *rows[::-1], replicates=300))
    assert back["finding_f1"]["value"] == -got["finding_f1"]["value"]
    assert back["losses"] == 10


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8})["a"] == 1.0
    assert holm({}) == {}


def write(folder, reports, manifest=None):
    folder.mkdir()
    rows = [json.dumps({"study": study, "report": report}) for study, report in reports.items()]
    (folder / "predictions.jsonl").write_text("\n".join(rows) + "\n")
    if manifest:
        (folder / "evaluation.json").write_text(json.dumps({"manifest": str(manifest)}))
    return folder


def test_two_folders(tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    rows = [
        {"study": f"s{i}", "image": f"s{i}.nii.gz", "patient": f"p{i}", "split": "test", "report": text}
        for i, text in enumerate(TRUTHS)
    ]
    for row in rows:
        (tmp_path / row["image"]).touch()
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\n")
    right = write(tmp_path / "a", {f"s{i}": text for i, text in enumerate(TRUTHS)}, manifest)
    wrong = write(tmp_path / "b", {f"s{i}": WELL for i in range(39)})
    got = compare(right, wrong, replicates=50)
    assert got["studies"] == 39
    assert got["left_out"] == ["s39"]
    assert got["tasks"]["report"]["finding_f1"]["value"] == 1
    assert got["tasks"]["report"]["wins"] == 20


def test_another_truth_of_the_same_names_is_told(tmp_path):
    (tmp_path / "s.nii.gz").touch()
    for name, texts in (("one", [ILL, WELL, ILL]), ("two", [ILL, ILL, ILL])):
        rows = [{"study": f"s{i}", "image": "s.nii.gz", "patient": f"p{i}", "report": t} for i, t in enumerate(texts)]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
        write(tmp_path / name, {row["study"]: ILL for row in rows}, path)
    (note,) = compare(tmp_path / "one", tmp_path / "two", replicates=20)["notes"]
    assert note.startswith(f"1 of 3 studies have another truth in {tmp_path / 'two.jsonl'}")
    assert "(s1)" in note
    same = compare(tmp_path / "one", tmp_path / "two", manifest=tmp_path / "two.jsonl", replicates=20)
    assert same["notes"] == []


def test_what_both_scored_and_cannot_be_compared_is_told(tmp_path):
    image = tmp_path / "s.nii.gz"
    image.touch()
    manifest = Manifest([Study(study="s", image=image, report=ILL)])
    for name in ("a", "b"):
        write(tmp_path / name, {"s": ILL})
        (tmp_path / name / "evaluation.json").write_text(json.dumps({"tasks": {"report": {"x": 1}, "codes": {"x": 1}}}))
    got = compare(tmp_path / "a", tmp_path / "b", manifest=manifest, replicates=20)
    assert list(got["tasks"]) == ["report"]
    assert [note.partition(" ")[0] for note in got["notes"]] == ["codes"]


def test_folders_that_cannot_be_compared(tmp_path):
    with pytest.raises(ValueError, match=r"predictions\.jsonl: no such file"):
        compare(tmp_path, tmp_path)
    silent = tmp_path / "silent"
    silent.mkdir()
    (silent / "predictions.jsonl").write_text('{"study": "s"}\n')
    with pytest.raises(ValueError, match=r"evaluation\.json: no such file; name the manifest"):
        compare(silent, silent)
    with pytest.raises(ValueError, match=r"has 1 studies, .* has 1, 1 of them are in both and none has a truth"):
        compare(silent, silent, manifest=Manifest([Study(study="s", image=Path("s.nii.gz"))]))


def test_subgroups_and_the_largest_gap():
    values = [1.0] * 12 + [0.5] * 15 + [0.0] * 3 + [9.0]
    groups = ["F"] * 12 + ["M"] * 15 + ["X"] * 3 + [None]
    got = by_subgroup(lambda rows: {"value": sum(values[i] for i in rows) / len(rows), "low": 0, "high": 1}, groups)
    assert got["groups"]["F"]["value"] == 1
    assert got["groups"]["X"]["note"] == "fewer than 10 studies"
    assert got["groups"]["X"]["studies"] == 3
    assert got["largest_gap"] == {"value": 0.5, "between": ["F", "M"]}
    assert got["unknown"] == 1
    judged = [number % 3 > 0 for number in range(len(groups))]
    some = by_subgroup(lambda rows: {"value": float(len(rows)), "low": 0, "high": 1}, groups, judged=judged)
    assert [some["groups"][name]["studies"] for name in "FMX"] == [8, 10, 2]
    assert (some["groups"]["F"]["value"], some["groups"]["M"]["value"], some["unknown"]) == (None, 10, 0)


def test_coverage_curve():
    curve = selective_accuracy([0.9, 0.8, 0.7, 0.6], [1.0, 1.0, 0.0, 0.0], points=4)
    assert [point["coverage"] for point in curve] == [0.25, 0.5, 0.75, 1.0]
    assert [point["accuracy"] for point in curve] == [1.0, 1.0, pytest.approx(2 / 3), 0.5]


@pytest.mark.parametrize("right", [[1.0, 1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0, 1.0]])
def test_equal_confidence_is_no_matter_of_the_rows_order(right):
    """Of the four answers that are equally sure, two are right."""
    curve = selective_accuracy([0.9, 0.5, 0.5, 0.5, 0.5], right, points=5)
    assert [point["accuracy"] for point in curve] == pytest.approx([1, 1.5 / 2, 2 / 3, 2.5 / 4, 3 / 5])
