"""Code scores equal scikit-learn and torchmetrics; unknown labels count for nothing; thresholds from validation."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from vol3d.evaluation.metrics.codes import choose_thresholds, reliability, score_codes
from vol3d.evaluation.metrics.ranking import Ranking


def table(studies=300, codes=4, seed=0, unknown=0.3):
    rng = np.random.default_rng(seed)
    truth = (rng.random((studies, codes)) < 0.3).astype(float)
    probability = np.clip(0.3 + 0.25 * truth + rng.normal(0, 0.2, truth.shape), 0, 1).round(2)  # rounding makes ties
    truth[rng.random(truth.shape) < unknown] = np.nan
    return probability, truth, list(range(studies)), [f"c{i}" for i in range(codes)]


def test_areas_equal_scikit_learn_with_ties_and_weights():
    probability, truth, *_ = table(unknown=0.0)
    weights = np.random.default_rng(1).integers(0, 4, (3, 300)).astype(float)
    y = truth[:, 0]
    areas = Ranking(probability[:, 0], y == 1, y == 0).areas(weights.T, weights.T)
    for row, roc, ap in zip(weights, *areas, strict=True):
        assert roc == pytest.approx(roc_auc_score(y, probability[:, 0], sample_weight=row))
        assert ap == pytest.approx(average_precision_score(y, probability[:, 0], sample_weight=row))


def test_scores_equal_the_libraries_on_known_labels():
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    probability, truth, patients, codes = table()
    thresholds = np.array([0.3, 0.4, 0.5, 0.6])
    got = score_codes(probability, truth, patients, codes, thresholds=thresholds, replicates=50)
    known = ~np.isnan(truth)
    per = [(truth[known[:, i], i], probability[known[:, i], i]) for i in range(4)]
    aurocs = [roc_auc_score(*pair) for pair in per]
    f1s = [f1_score(y, p >= cut) for (y, p), cut in zip(per, thresholds, strict=True)]
    assert got["macro_auroc"]["value"] == pytest.approx(np.mean(aurocs))
    assert got["macro_auprc"]["value"] == pytest.approx(np.mean([average_precision_score(*pair) for pair in per]))
    assert got["macro_f1"]["value"] == pytest.approx(np.mean(f1s))
    assert got["per_code"]["c2"]["auroc"]["value"] == pytest.approx(aurocs[2])
    assert got["per_code"]["c2"]["f1"]["value"] == pytest.approx(f1s[2])
    assert got["per_code"]["c1"]["positives"] == per[1][0].sum()
    y, p = np.concatenate([pair[0] for pair in per]), np.concatenate([pair[1] for pair in per])
    assert got["brier"]["value"] == pytest.approx(brier_score_loss(y, p))
    p = np.where((p * 15).round(6) % 1 == 0, np.abs(p - 1e-4), p)  # off the edges of bins: float32 there
    theirs = binary_calibration_error(torch.tensor(p), torch.tensor(y).long(), n_bins=15)
    ours = score_codes(p[:, None], y[:, None], list(range(len(p))), ["all"], replicates=20)
    assert ours["ece"]["value"] == pytest.approx(float(theirs), abs=1e-5)


def test_interval_holds_the_value_and_blind_is_chance():
    got = score_codes(*table(600, 6), replicates=200)
    assert got["macro_auroc"]["low"] < got["macro_auroc"]["value"] < got["macro_auroc"]["high"]
    assert got["baselines"]["blind"]["macro_auroc"] == pytest.approx(0.5, abs=0.05)


def test_unknown_is_not_negative():
    probability, truth, patients, codes = table(unknown=0.0)
    hidden = truth.copy()
    hidden[truth == 0] = np.where(np.random.default_rng(0).random((truth == 0).sum()) < 0.5, np.nan, 0)
    masked = score_codes(probability, hidden, patients, codes, replicates=5)
    as_negative = score_codes(probability, np.nan_to_num(hidden), patients, codes, replicates=5)
    assert masked["macro_auprc"]["value"] > as_negative["macro_auprc"]["value"] + 0.05


def test_a_code_with_one_label_is_skipped_by_name():
    probability, truth, patients, codes = table()
    truth[:, 0], truth[:, 1] = np.nan, 0
    got = score_codes(probability, truth, patients, codes, replicates=5)
    assert set(got["per_code"]) == {"c2", "c3"}
    assert got["skipped"]["c0"] == "no known label"
    assert got["skipped"]["c1"].startswith("one label only")
    nothing = score_codes(probability, np.full_like(truth, np.nan), patients, codes, replicates=5)
    assert nothing["macro_auroc"]["value"] is None
    assert nothing["ece"]["note"] == "no known label"


def test_no_f1_without_validation_thresholds():
    got = score_codes(*table(), replicates=5)
    assert "macro_f1" not in got
    assert "f1" not in got["per_code"]["c0"]


def test_chosen_threshold_is_the_best_one():
    probability, truth, *_ = table()
    chosen = choose_thresholds(probability, truth)
    for i, cut in enumerate(chosen):
        known = ~np.isnan(truth[:, i])
        every = [f1_score(truth[known, i], probability[known, i] >= c) for c in np.unique(probability[known, i])]
        assert f1_score(truth[known, i], probability[known, i] >= cut) == pytest.approx(max(every))
    assert choose_thresholds(probability, np.zeros_like(truth)).tolist() == [0.5] * 4


def test_reliability_by_hand():
    rows = reliability(np.array([0.1, 0.2, 0.9]), np.array([0.0, 1.0, 1.0]), bins=2)
    assert rows[0] == {"probability": pytest.approx(0.15), "frequency": 0.5, "labels": 2}
    assert rows[1] == {"probability": 0.9, "frequency": 1.0, "labels": 1}


def test_bad_tables_are_named():
    probability, truth, patients, codes = table()
    with pytest.raises(ValueError, match=r"probabilities are \(300, 4\), truths \(300, 4\), with 299 patients"):
        score_codes(probability, truth, patients[:-1], codes)
    wrong = probability.copy()
    wrong[7, 2] = 1.5
    with pytest.raises(ValueError, match=r"code 'c2' of study 7 has probability 1\.5"):
        score_codes(wrong, truth, patients, codes)
    with pytest.raises(ValueError, match="a truth is -1"):
        score_codes(probability, np.where(np.isnan(truth), -1, truth), patients, codes)


def test_codes_with_too_few_positives_are_skipped_and_say_so():
    probability, truth, patients, codes = table(unknown=0.0)
    truth[:, 1] = 0
    truth[:7, 1] = 1
    got = score_codes(probability, truth, patients, codes, min_positives=8, replicates=20)
    assert got["skipped"] == {"c1": "fewer than 8: {'positives': 7, 'negatives': 293}"}
    kept = [0, 2, 3]
    alone = score_codes(probability[:, kept], truth[:, kept], patients, [codes[i] for i in kept], replicates=20)
    assert got["macro_auroc"] == alone["macro_auroc"]
    for area in ("macro_auroc", "macro_auprc"):
        assert got["baselines"]["blind"][area] == alone["baselines"]["blind"][area]
    whole = score_codes(probability, truth, patients, codes, replicates=20)
    assert got["baselines"]["blind"]["brier"] == whole["baselines"]["blind"]["brier"] > got["brier"]["value"]
    assert "c1" in score_codes(probability, truth, patients, codes, min_positives=7, replicates=20)["per_code"]
