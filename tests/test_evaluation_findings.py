"""Finding scores: hand-worked values, scikit-learn, edge cases, speed."""

import time

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from vol3d.evaluation.metrics.findings import compare_findings, score_findings, split_side, study_f1

LEFT, RIGHT = "left pleural effusion", "right pleural effusion"


def value(scores, name):
    return scores[name]["value"]


def test_hand_worked():
    truths = [{LEFT, "ascites"}, {RIGHT}, set(), {"ascites"}]
    predicted = [{LEFT}, {LEFT}, {"ascites"}, {"ascites", "gallstones"}]
    got = score_findings(truths, predicted, list("abcd"), replicates=50)
    # left: tp 1 fp 1 fn 0; right: tp 0 fn 1; ascites: tp 1 fp 1 fn 1; gallstones: never in truth
    assert value(got, "finding_f1") == pytest.approx((2 / 3 + 0 + 1 / 2) / 3)
    assert value(got, "finding_precision") == pytest.approx((1 / 2 + 0 + 1 / 2) / 3)
    assert value(got, "finding_recall") == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert value(got, "finding_f1_micro") == pytest.approx(2 * 2 / (5 + 4))
    assert value(got, "finding_precision_micro") == pytest.approx(2 / 5)
    assert value(got, "finding_recall_micro") == pytest.approx(2 / 4)
    assert value(got, "laterality_accuracy") == pytest.approx(1 / 2)
    assert value(got, "exact_match") == 0
    assert got["classes"] == 3
    assert got["not_in_truth"] == {"gallstones": 1}
    assert got["per_finding"]["ascites"]["support"] == 2
    assert value(got["per_finding"]["ascites"], "f1") == pytest.approx(1 / 2)
    assert "1 classes were never reported" in got["finding_precision"]["note"]
    assert got["per_finding"][RIGHT]["precision"] == {
        "value": None,
        "low": None,
        "high": None,
        "note": "never reported",
    }


@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    true, predicted = rng.random((2, 80, 12)) < 0.3
    true[:, 3] = False  # never in truth
    names = [f"finding {i:02}" for i in range(12)]
    sets = [[{names[i] for i in np.flatnonzero(row)} for row in matrix] for matrix in (true, predicted)]
    got = score_findings(*sets, [str(i) for i in range(80)], replicates=20)
    kept = [i for i in range(12) if true[:, i].any()]
    for name, function in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        macro = function(true[:, kept], predicted[:, kept], average="macro", zero_division=0)
        assert value(got, f"finding_{name}") == pytest.approx(macro)
        micro = function(true, predicted, average="micro", zero_division=0)
        assert value(got, f"finding_{name}_micro") == pytest.approx(micro)
        for i in kept:
            one = function(true[:, i], predicted[:, i], zero_division=0)
            assert value(got["per_finding"][names[i]], name) == pytest.approx(one)


def test_laterality_counts_only_names_truly_there():
    truths = [{LEFT}, {LEFT, RIGHT}, {"ascites"}, {LEFT}]
    predicted = [{LEFT, RIGHT}, {RIGHT}, {LEFT}, {"pleural effusion"}]
    got = score_findings(truths, predicted, list("abcd"), replicates=20)
    assert value(got, "laterality_accuracy") == pytest.approx(2 / 3)
    assert got["side_not_given"] == {"pleural effusion": 1}


def test_perfect_and_silent_models():
    truths = [{LEFT}, {"ascites"}, set()] * 5
    patients = [str(i) for i in range(15)]
    perfect = score_findings(truths, truths, patients, replicates=20)
    assert value(perfect, "finding_f1") == value(perfect, "exact_match") == value(perfect, "laterality_accuracy") == 1
    assert perfect["laterality_accuracy"]["low"] < 1
    silent = score_findings(truths, [set()] * 15, patients, replicates=20)
    assert value(silent, "finding_f1") == 0
    assert silent["laterality_accuracy"]["value"] is None
    assert "no finding with a side" in silent["laterality_accuracy"]["note"]
    assert silent["finding_precision_micro"]["value"] is None


def test_no_finding_in_truth_is_undefined_and_says_so():
    got = score_findings([set(), set()], [set(), {"ascites"}], ["a", "b"], replicates=20)
    assert got["finding_f1"]["value"] is None
    assert got["finding_f1"]["note"] == "no study has a finding in truth"
    assert got["per_finding"] == {}
    assert got["not_in_truth"] == {"ascites": 1}
    nothing = score_findings([set(), set()], [set(), set()], ["a", "b"], replicates=20)
    assert nothing["exact_match"]["value"] == 1


def test_classes_restrict_the_score():
    got = score_findings([{"ascites", LEFT}], [{"ascites"}], ["a"], classes=["ascites"], replicates=5)
    assert list(got["per_finding"]) == ["ascites"]
    assert value(got, "finding_f1") == 1


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="2 truths, 1 predictions"):
        score_findings([set(), set()], [set()], ["a", "b"])
    with pytest.raises(ValueError, match="1 studies, 2 patients"):
        score_findings([set()], [set()], ["a", "b"])
    with pytest.raises(ValueError, match="0 studies"):
        score_findings([], [], [])


def test_interval_holds_the_value_and_shrinks_with_more_patients():
    rng = np.random.default_rng(0)

    def width(count):
        truths = [{"ascites"} if rng.random() < 0.5 else set() for _ in range(count)]
        predicted = [keys if rng.random() < 0.8 else {"ascites"} - keys for keys in truths]
        got = score_findings(truths, predicted, list(range(count)), replicates=500)["finding_f1"]
        assert got["low"] < got["value"] < got["high"]
        return got["high"] - got["low"]

    assert width(1600) < 0.4 * width(100)


def test_compare_tells_the_better_model():
    rng = np.random.default_rng(1)
    truths = [{"ascites"} if rng.random() < 0.5 else {LEFT} for _ in range(150)]
    good = [keys if rng.random() < 0.9 else set() for keys in truths]
    poor = [keys if rng.random() < 0.6 else set() for keys in truths]
    got = compare_findings(truths, good, poor, list(range(150)))
    assert got["finding_f1"]["low"] > 0
    assert got["finding_f1"]["p"] < 0.01
    assert got["wins"] > got["losses"]
    assert got["wins"] + got["losses"] + got["ties"] == 150


@pytest.mark.parametrize(
    ("key", "pair"),
    [(LEFT, ("left", "pleural effusion")), ("ascites", (None, "ascites")), ("left", (None, "left"))],
)
def test_split_side(key, pair):
    assert split_side(key) == pair


def test_study_f1():
    assert study_f1({"a", "b"}, {"a"}) == pytest.approx(2 / 3)
    assert study_f1(set(), set()) == 1


@pytest.mark.slow
def test_ten_thousand_studies_in_under_a_minute():
    rng = np.random.default_rng(0)
    names = [f"{'left ' if i % 3 == 0 else ''}finding {i}" for i in range(40)]
    truths, predicted = (
        [{names[i] for i in np.flatnonzero(row)} for row in rng.random((10_000, 40)) < 0.1] for _ in range(2)
    )
    start = time.perf_counter()
    score_findings(truths, predicted, rng.integers(0, 8000, 10_000).tolist())
    assert time.perf_counter() - start < 60
