"""Each task's comparison of two models: known differences by hand or by the task's own score."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from vol3d.data.batch import Sample
from vol3d.data.questions import asked_of
from vol3d.data.study import Study
from vol3d.evaluation.compare_page import render
from vol3d.evaluation.compare_tasks import COMPARISONS
from vol3d.evaluation.metrics.codes import score_codes
from vol3d.evaluation.metrics.retrieval import score_retrieval
from vol3d.evaluation.metrics.survival import c_index, c_index_ipcw
from vol3d.evaluation.sides import Sides
from vol3d.text.matching import says
from vol3d.text.ontology import FINDINGS
from vol3d.text.structured import structured
from vol3d.volume.runs import encode_runs

COUNT = 40
RNG = np.random.default_rng(0)


def study(number, **fields):
    return Study(study=f"s{number}", image=Path("x.nii.gz"), patient=f"p{number}", **fields)


def rows(values):
    return {f"s{number}": value for number, value in enumerate(values)}


def compared(task, studies, first, second, **options):
    block = COMPARISONS[task](Sides(studies, rows(first), rows(second), replicates=200, **options))
    assert block["wins"] + block["ties"] + block["losses"] > 0
    assert block["counted"]
    return block


def test_retrieval():
    texts = np.eye(COUNT)
    studies = [study(i, report=f"Report number {i}.") for i in range(COUNT)]
    right = [{"retrieval": {"volume": row.tolist(), "text": row.tolist()}} for row in texts]
    wrong = [
        {"retrieval": {"volume": texts[(i + 1) % COUNT].tolist(), "text": row.tolist()}} for i, row in enumerate(texts)
    ]
    got = compared("retrieval", studies, right, wrong)
    assert (got["recall@1"]["first"], got["recall@1"]["second"], got["recall@1"]["value"]) == (1, 0, 1)
    assert got["recall@1"]["p"] < 0.05
    assert got["text_to_image recall@1"]["value"] == 1
    assert (got["wins"], got["losses"]) == (COUNT, 0)


def test_zero_shot():
    truth = RNG.random((COUNT, 2)) < 0.4
    names = ["ascites", "gallstones"]
    studies = [study(i, labels_known=dict(zip(names, map(int, row), strict=True))) for i, row in enumerate(truth)]
    sides = [truth + RNG.normal(0, spread, truth.shape) for spread in (0.3, 3)]
    said = [[{"zero_shot": dict(zip(names, row.tolist(), strict=True))} for row in side] for side in sides]
    got = compared("zero_shot", studies, *said)
    expected = [np.mean([roc_auc_score(truth[:, j], side[:, j]) for j in range(2)]) for side in sides]
    assert [got["macro_auroc"]["first"], got["macro_auroc"]["second"]] == pytest.approx(expected)
    assert got["macro_auroc"]["p"] < 0.05
    assert (got["wins"], got["counted"]) == (2, "findings")
    assert COMPARISONS["zero_shot"](Sides([study(0)], rows(said[0][:1]), rows(said[1][:1]))) == {}


def test_one_label_only_is_undefined():
    studies = [study(i, labels_known={"ascites": 1}) for i in range(4)]
    said = [{"zero_shot": {"ascites": float(i)}} for i in range(4)]
    got = COMPARISONS["zero_shot"](Sides(studies, rows(said), rows(said), replicates=20))
    assert got["macro_auroc"]["note"] == "no name has both a positive and a negative study"


def test_outcomes():
    days, events = RNG.integers(1, 1000, COUNT).astype(float), RNG.random(COUNT) < 0.7
    studies = [
        study(i, outcomes={"death": {"time": t, "event": int(e)}})
        for i, (t, e) in enumerate(zip(days, events, strict=True))
    ]
    risks = [-days + RNG.normal(0, spread, COUNT) for spread in (50, 5000)]
    said = [[{"outcomes": {"death": {"risk": float(risk)}}} for risk in side] for side in risks]
    got = compared("outcomes", studies, *said)
    for name, score in (("c_index", c_index), ("c_index_ipcw", c_index_ipcw)):
        assert [got[name]["first"], got[name]["second"]] == pytest.approx([score(days, events, risk) for risk in risks])
    assert got["c_index"]["low"] > 0
    assert got["wins"] > got["losses"]
    # An outcome that nobody has is left out, and told.
    for found, time in zip(studies, days, strict=True):
        found.outcomes["stroke"] = {"time": time, "event": 0}
    for row in (*said[0], *said[1]):
        row["outcomes"]["stroke"] = row["outcomes"]["death"]
    more = compared("outcomes", studies, *said)
    assert more["c_index"]["value"] == got["c_index"]["value"]
    assert "without stroke: no pair" in more["c_index"]["note"]


def boxed(low, high):
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[low:high, 2:6, 2:6] = True
    return mask


def test_masks():
    labels = boxed(2, 6).astype(np.int16)
    found = study(0, mask=Path("m.nii.gz"), mask_labels={"liver": 1, "spleen": 2})
    sample = Sample(found, torch.zeros(1, 8, 8, 8), torch.eye(4, dtype=torch.float64), torch.from_numpy(labels))
    said = [
        [{"segmentation": {name: {"runs": encode_runs(mask)} for name in ("liver", "spleen")}}]
        for mask in (boxed(2, 6), boxed(4, 8))
    ]
    got = compared("segmentation", [found], *said, samples=(lambda _: sample, lambda _: sample))
    assert (got["dice"]["first"], got["dice"]["second"]) == (1, 0.5)
    assert (got["wins"], got["ties"]) == (1, 0)  # the absent spleen is left out
    assert COMPARISONS["segmentation"](Sides([found], rows(said[0]), rows(said[1]))) == {}


def test_boxes_and_their_names():
    truth = {"label": "ascites", "min_mm": [0, 0, 0], "max_mm": [2, 2, 2]}
    studies = [study(i, boxes=[truth]) for i in range(3)]
    half = truth | {"min_mm": [1, 0, 0], "max_mm": [3, 2, 2], "score": 0.9}
    first = [{"boxes": [truth | {"score": 0.9}], "box_names": [{"answer": "ascites"}]}] * 3
    second = [{"boxes": [half], "box_names": [{"answer": "gallstones"}]}] * 3
    got = compared("grounding", studies, first, second)
    assert got["iou"]["second"] == pytest.approx(1 / 3)
    assert got["m3d_hull_iou"]["second"] == pytest.approx(1 / 3, abs=1e-5)
    assert got["region_accuracy"]["value"] == 1
    # A box whose label neither model has among its names is not asked about.
    more = [study(i, boxes=[truth, truth | {"label": "gallstones"}]) for i in range(3)]
    said = [[row | {"box_names": row["box_names"] * 2} for row in side] for side in (first, second)]
    only = ({"Grounding": {"names": ["ascites"]}},) * 2
    assert compared("grounding", more, *said, settings=only)["region_accuracy"]["first"] == 1
    unsure = [{"boxes": [half | {"score": 0.4}], "box_names": []}] * 3
    assert compared("grounding", studies, first, unsure)["iou"]["second"] == 0


def test_open_questions():
    asked = {"question": "Where?", "answer": "in the liver"}
    studies = [study(i, questions=[asked]) for i in range(4)]
    said = [[{"answers": [{"question": "Where?", "answer": text}]}] * 4 for text in ("In the liver.", "liver spleen")]
    got = compared("vqa_open", studies, *said)
    assert got["exact_match"]["value"] == 1
    assert got["token_f1"]["second"] == pytest.approx(0.5)
    assert got["wins"] == 4


def test_closed_questions_of_the_same_words_are_told_apart_by_their_choices():
    words = {"question": "Which of these findings is present?"}
    asked = [words | {"answer": a, "choices": [a, "gallstones"]} for a in ("ascites", "splenomegaly")]
    studies = [study(i, questions=asked) for i in range(4)]
    right = [{"answers": [row | {"answer": row["choices"][0]} for row in asked]}] * 4
    half = [{"answers": [asked[0], asked[1] | {"answer": "B. gallstones"}]}] * 4
    got = compared("vqa_closed", studies, right, half)
    assert (got["accuracy"]["first"], got["accuracy"]["second"]) == (1, 0.5)
    assert (got["wins"], got["ties"]) == (4, 4)
    fewer = [{"answers": [asked[1]]}] * 4  # a model that was asked one of the two
    assert compared("vqa_closed", studies, right, fewer)["ties"] == 4


def test_questions_that_the_task_builds():
    studies = [study(i, labels_known={"ascites": i % 2, "gallstones": 1 - i % 2}) for i in range(6)]
    options = {"questions": "built", "kinds": ["presence"]}
    built = [asked_of(row, **options) for row in studies]
    right, wrong = (
        [{"answers": [row | {"answer": answer(row)} for row in rows]} for rows in built]
        for answer in (lambda row: row["answer"], lambda row: "yes")
    )
    got = compared("vqa_closed", studies, right, wrong, settings=({"VQA": options | {"weight": 1.0}}, {}))
    assert got["accuracy"]["first"] == 1
    assert got["accuracy"]["second"] == np.mean([row["answer"] == "yes" for rows in built for row in rows])


def test_codes_of_the_manifest_are_mapped_to_the_models():
    there = RNG.random(COUNT) < 0.5
    studies = [
        study(i, code_system="icd10cm", **{"codes" if is_there else "codes_absent": ["R18.8"]})
        for i, is_there in enumerate(there)
    ]
    phecode = FINDINGS["ascites"].phecode
    said = [
        [{"codes": {phecode: float(p)}} for p in (0.5 + sign * (there - 0.5) * RNG.random(COUNT))] for sign in (1, -1)
    ]
    task = {"EHRCodes": {"system": "phecode", "code_map": "findings"}}
    got = compared("codes", studies, *said, settings=(task, task))
    assert (got["macro_auroc"]["first"], got["macro_auroc"]["second"]) == (1, 0)
    assert got["brier"]["value"] < 0
    assert (got["wins"], got["counted"]) == (COUNT, "studies")


def test_codes_are_compared_as_each_evaluation_scores_them():
    """The same codes, with as many labels; and studies count in the Brier score by their labels."""
    names = ["R18", "K80", "J90"]
    truth = np.where(RNG.random((COUNT, 3)) < 0.6, RNG.random((COUNT, 3)) < 0.5, np.nan)
    truth[:, 2] = np.arange(COUNT) < 2  # too rare for an area
    studies = [
        study(
            i,
            codes=[name for name, known in zip(names, row, strict=True) if known == 1],
            codes_absent=[name for name, known in zip(names, row, strict=True) if known == 0],
        )
        for i, row in enumerate(truth)
    ]
    sides = [RNG.random((COUNT, 3)) for _ in range(2)]
    said = [[{"codes": dict(zip(names, row.tolist(), strict=True))} for row in side] for side in sides]
    patients = [row.patient for row in studies]
    scores = [score_codes(side, truth, patients, names, min_positives=5, replicates=2) for side in sides]
    for settings in ({"EHRCodes": {"codes": names}}, {"EHRCodes": {"codes": names, "min_positives": 5}}):
        got = compared("codes", studies, *said, settings=(settings, settings))
        for metric in ("macro_auroc", "macro_auprc", "brier"):
            expected = [score[metric]["value"] for score in scores]
            assert [got[metric]["first"], got[metric]["second"]] == pytest.approx(expected)
    rare = [study(i, codes=names[2:] if i < 2 else [], codes_absent=names[2:] if i > 1 else []) for i in range(COUNT)]
    note = compared("codes", rare, *said, settings=(settings, settings))["macro_auroc"]["note"]
    assert note == "no name has 5 positive and as many negative studies"


@pytest.mark.parametrize("options", [{"text": "impression"}, {"equal": "findings"}])
def test_retrieval_is_compared_in_the_pools_of_each_evaluation(options):
    texts = ["Small ascites.", "Ascites, small.", "Gallstones.", "No stones, no gallstones."]
    studies = [study(i, report=texts[i % 4], impression=texts[i % 3]) for i in range(12)]
    sides = [RNG.normal(size=(2, 12, 8)) for _ in range(2)]
    said = [
        [{"retrieval": {"volume": v.tolist(), "text": t.tolist()}} for v, t in zip(*side, strict=True)]
        for side in sides
    ]
    got = compared("retrieval", studies, *said, settings=({"Retrieval": options | {"queries": 4}}, {}))
    words = [getattr(row, options.get("text", "report")) for row in studies]
    distinct = [says(text, options.get("equal", "text")) for text in words]
    for side, name in zip(sides, ("first", "second"), strict=True):
        patients = [row.patient for row in studies]
        own = score_retrieval(*side, patients, reports=words, distinct=distinct, replicates=2)
        for metric in ("recall@1", "recall@5", "mrr"):
            assert got[metric][name] == pytest.approx(own[metric]["value"])
            assert got[f"text_to_image {metric}"][name] == pytest.approx(own["text_to_image"][metric]["value"])


def test_structured_reports():
    text = "FINDINGS:\nThere is a 12 mm nodule in the left lung. Possible ascites."
    truth = structured(text)
    studies = [study(i, report=text) for i in range(8)]
    worse = [row | {"certainty": "present"} for row in structured(text.replace("12 mm", "18 mm"))]
    wrong = structured(text.replace("left", "right"))
    got = compared(
        "structured", studies, [{"structured": truth}] * 8, [{"structured": worse}] * 4 + [{"structured": wrong}] * 4
    )
    assert got["finding_recall_micro"]["second"] == pytest.approx(12 / 16)
    assert (got["wins"], got["ties"], got["counted"]) == (4, 4, "studies")
    # Sizes and certainties of what both have right: the nodule in four studies, the ascites in all eight.
    assert (got["size_error_mm"]["first"], got["size_error_mm"]["second"]) == (0, 6)
    assert got["certainty_accuracy"]["second"] == pytest.approx(8 / 12)
    assert got["certainty_accuracy"]["low"] > 0
    only = ({"StructuredReport": {"findings": ["ascites"]}}, {"StructuredReport": {"findings": None}})
    less = compared("structured", studies, [{"structured": truth}] * 8, [{"structured": wrong}] * 8, settings=only)
    assert less["finding_f1"]["value"] == 0  # the nodule, which the first may not write, does not count
    assert "size_error_mm" not in less


def test_hidden_voxels_where_both_saw_the_same_rest():
    studies = [study(i) for i in range(5)]
    first, second, other = (
        [{"masked_volume": {"error": error, "constant_error": constant}}] * 5
        for error, constant in ((0.05, 0.2), (0.08, 0.2), (0.01, 0.3))
    )
    got = compared("masked_volume", studies, first, second)
    assert got["error"]["value"] == pytest.approx(-0.03)
    assert (got["wins"], got["losses"]) == (5, 0)
    assert COMPARISONS["masked_volume"](Sides(studies, rows(first), rows(other))) == {}


def test_the_page_of_a_comparison():
    tasks = {
        "segmentation": {
            "hd95_mm": {"value": -1.0, "low": -2.0, "high": -0.5, "p": 0.001, "p_holm": 0.002, "first": 3, "second": 4},
            "dice": {"value": 0.02, "low": -0.01, "high": 0.04, "p": 0.2, "p_holm": 0.2, "first": 0.8, "second": 0.78},
            "wins": 3, "ties": 1, "losses": 2, "counted": "masks",
        }
    }  # fmt: skip
    html = render({"first": "a", "second": "b", "studies": 6, "left_out": [], "scores": 2, "notes": [], "tasks": tasks})
    assert "better in 1 and worse in 0; in the other 1 the two cannot be told apart" in html
    assert "3 wins, 1 ties, 2 losses of the first model, by masks" in html
    assert html.index("Dice") < html.index("HD95")  # the headline first
