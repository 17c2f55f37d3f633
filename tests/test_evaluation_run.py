"""`evaluate`: resumed, re-scored, probed; models that look, that do not, and that say nothing sensible."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toy_models import LEFT, RIGHT, Answers, Says, Toy, samples, toy, words
from world import study as box_study

from vol3d.cli import main
from vol3d.data.manifest import Manifest
from vol3d.evaluation.compare import compare, comparison_text
from vol3d.evaluation.predictions import Shelf, check_rows, read_predictions
from vol3d.evaluation.run import evaluate
from vol3d.evaluation.summary import summary


def test_leakage_is_looked_for_in_the_split_that_is_scored(tmp_path):
    model, manifest = toy(Says(), count=6)
    report = words([LEFT, RIGHT])
    rows = [replace(study, report=report, split=["train", "val"][n % 2]) for n, study in enumerate(manifest)]
    leakage = evaluate(model, Manifest(rows), out=tmp_path, split="val", replicates=5)["leakage"]
    assert leakage["test_reports"] == 3
    assert leakage["reports_seen_in_training"] == ["s1", "s3", "s5"]


def test_twins_are_told_with_what_their_scores_mean(tmp_path):
    model, manifest = toy(Says(), count=4)
    twin = {"twin_of": "s0", "change": "remove", "changed": LEFT}
    rows = [replace(study, meta={**study.meta, **(twin if study.study == "s3" else {})}) for study in manifest]
    result = evaluate(model, Manifest(rows), out=tmp_path, replicates=5)
    twins = result["faithfulness"]["twins"]
    assert twins["pairs"] == 1
    assert "twins: not judged: too few patients to tell (1, 8 could)" in summary(result)
    assert "No sign that it looks" not in (tmp_path / "evaluation.html").read_text()
    assert set(twins["definitions"]) == {"changed", "unchanged", "both", "sb", "ig", "id"}
    assert "BEAF" in (tmp_path / "evaluation.html").read_text()


def test_groups_and_abstention(tmp_path):
    model, manifest = toy(Says(), Answers())
    good = evaluate(model, manifest, out=tmp_path / "good", replicates=100, by=["sex", "age"])
    groups = good["subgroups"]["sex"]["report"]
    assert groups["metric"] == "finding_f1"
    assert {name: group["studies"] for name, group in groups["groups"].items()} == {"F": 12, "M": 12}
    assert groups["scores"]["finding_f1"]["groups"] == groups["groups"]
    assert groups["scores"]["rouge_l"]["largest_gap"]["value"] == 0  # of a model that is always right
    assert len(good["subgroups"]["age"]["report"]["groups"]) == 4
    # A study without questions is none of those that their score is of.
    fewer = [replace(study, questions=[] if place % 3 else study.questions) for place, study in enumerate(manifest)]
    rows = evaluate(model, Manifest(fewer), out=tmp_path / "fewer", replicates=20, by=["sex"])["subgroups"]["sex"]
    asked = Counter(study.meta["sex"] for study in fewer if study.questions)
    told = {block: {k: v["studies"] for k, v in rows[block]["groups"].items()} for block in ("report", "vqa_closed")}
    assert told == {"report": {"F": 12, "M": 12}, "vqa_closed": {"F": 0, "M": 0} | asked}
    assert good["abstention"]["vqa_closed"]["accuracy@50%"]["value"] == 1
    model, manifest = toy(Says("x"), Answers(looks=False))
    poor = evaluate(model, manifest, out=tmp_path / "poor", replicates=100)
    assert poor["abstention"]["vqa_closed"]["accuracy@100%"]["value"] < 1
    page = (tmp_path / "good" / "evaluation.html").read_text()
    assert "By sex" in page


def test_a_killed_evaluation_goes_on(tmp_path):
    whole, manifest = toy(Says())
    evaluate(whole, manifest, out=tmp_path / "whole", replicates=20, batch_size=4)
    killed, _ = toy(Says())
    predict = killed.predict
    calls = []

    def dies(batch, tasks=None):
        calls.append(len(batch))
        if len(calls) > 3:
            raise RuntimeError("killed")
        return predict(batch, tasks)

    killed.predict = dies
    with pytest.raises(RuntimeError, match="killed"):
        evaluate(killed, manifest, out=tmp_path / "half", replicates=20, batch_size=4)
    path = tmp_path / "half" / "predictions.jsonl"
    assert len(path.read_text().splitlines()) == 12
    with path.open("a") as file:
        file.write('{"study": "s12", "rep')  # the row that was being written
    again, _ = toy(Says())
    again.sample, shown = (lambda volume, own=again.sample: shown.append(volume.study) or own(volume)), []
    evaluate(again, manifest, out=tmp_path / "half", replicates=20, batch_size=4)
    assert shown[:12] == sorted(f"s{number}" for number in range(24))[12:]
    one, two = (read_predictions(tmp_path / name) for name in ("whole", "half"))
    assert one == two
    scores = [json.loads((tmp_path / name / "evaluation.json").read_text())["tasks"] for name in ("whole", "half")]
    assert scores[0] == scores[1]


def test_the_order_of_rows_and_the_batch_size_decide_nothing(tmp_path):
    model, manifest = toy(Says(), Answers())
    rows = [replace(study, split=["test", "train"][n % 3 == 0]) for n, study in enumerate(manifest)]
    shuffled = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    written, compared = [], []
    for name, order, size in (("one", rows, 16), ("two", shuffled, 5)):
        out = tmp_path / name
        told = evaluate(model, Manifest(order), out=out, replicates=20, batch_size=size, by=["sex"], probes=["noise"])
        written.append(((out / "predictions.jsonl").read_text(), told | {"seconds": 0, "base": {}}))
        poor, _ = toy(Says(words([LEFT])))
        evaluate(poor, Manifest(order), out=tmp_path / f"poor {name}", replicates=20)
        compared.append(compare(out, tmp_path / f"poor {name}", manifest=Manifest(order), replicates=20)["tasks"])
    assert written[0] == written[1]
    assert compared[0] == compared[1]
    evaluate(model, Manifest(shuffled), out=tmp_path / "one", replicates=20)  # the same studies: nothing is refused


def test_predictions_of_another_model_are_refused(tmp_path):
    model, manifest = toy(Says())
    evaluate(model, manifest, out=tmp_path, replicates=20)
    nn.init.ones_(model.model.weight)
    with pytest.raises(ValueError, match=r"made otherwise \(model \w+, now \w+\).*--overwrite"):
        evaluate(model, manifest, out=tmp_path, replicates=20)
    evaluate(model, manifest, out=tmp_path, replicates=20, overwrite=True)
    with pytest.raises(ValueError, match=r"made otherwise \(studies"):
        evaluate(model, manifest[:20], out=tmp_path, replicates=20)


def test_overwrite_leaves_what_is_not_its_own(tmp_path):
    model, manifest = toy(Says())
    others = [tmp_path / name for name in ("manifest.jsonl", "failures.jsonl")]
    for path in others:
        path.write_text("{}\n")
    evaluate(model, manifest, out=tmp_path, replicates=20)  # beside the manifest, which is no prediction
    kept = {path.name for path in tmp_path.glob("*.jsonl")}
    assert kept > {"predictions.jsonl", "manifest.jsonl"}
    nn.init.ones_(model.model.weight)
    evaluate(model, manifest, out=tmp_path, replicates=20, overwrite=True)
    assert all(path.read_text() == "{}\n" for path in others)


def test_predictions_are_scored_without_a_volume(tmp_path):
    model, manifest = toy(Says(), Answers())
    first = evaluate(model, manifest, out=tmp_path / "a", replicates=50, probes=["blank"])
    again, _ = toy(Says(), Answers())
    again.predict = None
    second = evaluate(again, manifest, out=tmp_path / "b", replicates=50, probes=["blank"], predictions=tmp_path / "a")
    assert second["tasks"] == first["tasks"]
    assert second["faithfulness"]["report"]["blank"] == first["faithfulness"]["report"]["blank"]
    # What `vol3d predict` left on two GPUs, one study twice.
    rows = (tmp_path / "a" / "predictions.jsonl").read_text().splitlines(keepends=True)
    ranks = tmp_path / "ranks"
    ranks.mkdir()
    (ranks / "predictions.jsonl").write_text("".join(rows[:12]))
    (ranks / "predictions.rank1.jsonl").write_text("".join(rows[11:]))
    third = evaluate(again, manifest, out=tmp_path / "c", replicates=50, predictions=ranks / "predictions.jsonl")
    assert third["tasks"]["report"] == first["tasks"]["report"]
    assert third["tasks"]["vqa_closed"]["accuracy"] == first["tasks"]["vqa_closed"]["accuracy"]
    with pytest.raises(ValueError, match="no such file"):
        evaluate(again, manifest, out=tmp_path / "d", predictions=tmp_path / "nothing")


def edited(tmp_path, change):
    """Scores of predictions after `change` was done to their rows."""
    model, manifest = toy(Says(), Answers())
    rows = list(
        Toy(Says(), Answers(), samples=model.samples.values()).predict(
            list(model.samples.values()), list(model.tasks.values())
        )
    )
    for row in rows:
        change(row)
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return evaluate(model, manifest, out=tmp_path / "out", predictions=path, replicates=20)


def test_a_missing_field_is_left_out_and_said(tmp_path):
    got = edited(tmp_path, lambda row: row.pop("report") if row["study"] == "s3" else None)
    assert got["studies"] == 23
    assert got["notes"] == ["1 of 24 studies lack the field report and are not scored (s3)"]
    nowhere = edited(tmp_path, lambda row: row.pop("answers"))
    assert "no field 'answers'" in nowhere["tasks"]["vqa"]["note"]
    assert nowhere["tasks"]["report"]["finding_f1"]["value"] == 1
    assert "no field 'answers'" in summary(nowhere)


def test_an_empty_prediction_scores_and_is_counted(tmp_path):
    got = edited(tmp_path, lambda row: row.update(report="" if row["study"] != "s3" else None))
    assert got["tasks"]["report"]["collapse"]["empty"] == 24
    assert got["tasks"]["report"]["finding_f1"]["value"] == 0
    assert got["tasks"]["report"]["bleu_1"]["value"] == 0


def test_nan_is_left_out_and_said(tmp_path):
    def change(row):
        if row["study"] == "s5":
            row["answers"][0]["scores"] = [float("nan"), 0.0]

    got = edited(tmp_path, change)
    assert got["notes"] == ["1 of 24 studies have a prediction with NaN or infinity and are not scored (s5)"]
    long = {"study": "a", "retrieval": {"volume": [1.0] * 20 + [float("inf")]}}
    assert check_rows({"a": long}, samples(1)[:0]).rows == {}


def test_one_class_and_one_patient(tmp_path):
    model, manifest = toy(Says(), Answers(), patient="p0")
    got = evaluate(model, manifest, out=tmp_path / "patient", replicates=20, probes=True)
    assert got["patients"] == 1
    assert got["tasks"]["report"]["finding_f1"]["note"] == "one patient: no interval"
    assert "patient 'p0' has 24 of 24" in got["tasks"]["report"]["baselines"]["blind"]["note"]
    block = got["faithfulness"]["report"]
    assert block["caught"] == []
    assert {"shuffled", "blank", "image_dependence"} <= block["not_judged"].keys()
    normal = [s for s in manifest if "effusion" not in s.report]
    rows = evaluate(model, Manifest(normal), out=tmp_path / "class", replicates=20, probes=True)
    f1 = rows["tasks"]["report"]["finding_f1"]
    assert f1["value"] is None
    assert f1["note"]


def test_two_evaluations_side_by_side(tmp_path, capsys):
    model, manifest = toy(Says(), Answers())
    evaluate(model, manifest, out=tmp_path / "a", replicates=20)
    base, _ = toy(Says(words([LEFT])), Answers(looks=False))
    evaluate(base, manifest, out=tmp_path / "b", replicates=20)
    got = compare(tmp_path / "a", tmp_path / "b", manifest=manifest, out=tmp_path / "c", replicates=200)
    truth = [row["answer"] for study in manifest for row in study.questions]
    block = got["tasks"]["vqa_closed"]
    assert block["accuracy"]["value"] == pytest.approx(truth.count("yes") / len(truth))
    assert (block["wins"], block["losses"], block["ties"]) == (truth.count("yes"), 0, truth.count("no"))
    assert block["accuracy"]["p"] < 0.05
    assert block["accuracy"]["p"] <= block["accuracy"]["p_holm"]
    assert json.loads((tmp_path / "c" / "comparison.json").read_text()) == json.loads(json.dumps(got))
    page = (tmp_path / "c" / "comparison.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    assert f"{truth.count('yes')} wins" in comparison_text(got)
    with pytest.raises(ValueError, match=r"names the manifest 'in memory', which is no file here: .* --manifest FILE"):
        compare(tmp_path / "a", tmp_path / "b")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "nothing")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_macro_auroc_of_codes_equals_sklearns():
    from sklearn.metrics import roc_auc_score

    from vol3d.evaluation.compare_numbers import compare_codes
    from vol3d.evaluation.sides import Sides

    rng = np.random.default_rng(0)
    truth = rng.random((40, 3)) < 0.4
    base = box_study(0).study
    studies = [
        replace(
            base, study=f"s{i}", patient=f"p{i}",
            codes=[f"c{j}" for j in range(3) if row[j]], codes_absent=[f"c{j}" for j in range(3) if not row[j]],
        )
        for i, row in enumerate(truth)
    ]  # fmt: skip
    sides = [np.round(rng.random((40, 3)) + 0.4 * scale * truth, 1) for scale in (1, 0)]
    rows = [
        {f"s{i}": {"codes": {f"c{j}": float(v) for j, v in enumerate(row)}} for i, row in enumerate(side)}
        for side in sides
    ]
    got = compare_codes(Sides(studies, *rows, replicates=50))
    expected = [np.mean([roc_auc_score(truth[:, j], side[:, j]) for j in range(3)]) for side in sides]
    assert got["macro_auroc"]["value"] == pytest.approx(expected[0] - expected[1])


def test_a_shelf_and_its_bad_lines(tmp_path):
    shelf = Shelf(tmp_path, {"model": "m"})
    shelf.append("predictions", [{"study": "a", "report": "x"}])
    (tmp_path / "predictions.jsonl").open("a").write("{not json}\n")
    with pytest.raises(ValueError, match=r"predictions\.jsonl, line 2: not JSON"):
        shelf.read("predictions")
    (tmp_path / "predictions.jsonl").write_text('{"report": "x"}\n')
    with pytest.raises(ValueError, match="line 1: a row needs the field 'study'"):
        read_predictions(tmp_path)


def test_unknown_probes_and_fields_are_named(tmp_path):
    model, manifest = toy(Says(), count=6)
    with pytest.raises(ValueError, match="unknown probes rotate"):
        evaluate(model, manifest, out=tmp_path, probes=["rotate"], replicates=20)
    with pytest.raises(ValueError, match=r"none of 6 studies has meta\.race; there is age, sex"):
        evaluate(model, manifest, out=tmp_path, by=["race"], replicates=20)
    assert torch.is_tensor(model.model.weight)
