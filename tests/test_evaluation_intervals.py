"""Intervals: known spread, simulated coverage, clustering, paired tests."""

import numpy as np
import pytest
from scipy import stats

from vol3d.evaluation.intervals import clustered_bootstrap, draw_weights, paired_bootstrap, share
from vol3d.evaluation.metrics.codes import score_codes
from vol3d.evaluation.metrics.findings import Counts, score_findings
from vol3d.evaluation.metrics.segmentation import score_segmentation
from vol3d.evaluation.metrics.survival import score_outcomes


def mean_of(values):
    values = np.asarray(values, dtype=float)
    return lambda weights: weights @ values / weights.sum(1)


def test_weights_draw_whole_patients():
    weights = draw_weights(["a", "b", "a", "c"], 200, np.random.default_rng(0))
    assert weights.shape == (200, 4)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()
    assert weights.std() > 0.5


def test_mean_equals_the_t_interval():
    values = np.random.default_rng(1).normal(3, 2, 400)
    got = clustered_bootstrap(mean_of(values), range(400), replicates=4000)[0]
    low, high = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert got["value"] == pytest.approx(values.mean())
    assert got["low"] == pytest.approx(low, abs=0.02)
    assert got["high"] == pytest.approx(high, abs=0.02)


def test_seed_reproduces_and_matters():
    values = np.arange(30.0)
    first, again = (clustered_bootstrap(mean_of(values), range(30), seed=4) for _ in range(2))
    assert first == again
    assert clustered_bootstrap(mean_of(values), range(30), seed=5) != first


def test_clustering_widens_the_interval_when_studies_of_a_patient_agree():
    rng = np.random.default_rng(2)
    patients = np.repeat(np.arange(40), 10)
    alike = np.repeat(rng.normal(size=40), 10)
    unlike = rng.normal(size=400)
    for values, widens in ((alike, True), (unlike, False)):
        clustered = clustered_bootstrap(mean_of(values), list(patients))[0]
        plain = clustered_bootstrap(mean_of(values), range(400))[0]
        ratio = (clustered["high"] - clustered["low"]) / (plain["high"] - plain["low"])
        assert (ratio > 2.5) if widens else (0.7 < ratio < 1.4)


def coverage(patients, trials, draw, truth):
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(trials):
        values, clusters = draw(rng, patients)
        got = clustered_bootstrap(mean_of(values), clusters, replicates=600, seed=trial)[0]
        hits += got["low"] <= truth <= got["high"]
    return hits / trials


def clustered_normal(rng, patients):
    return np.repeat(rng.normal(size=patients), 3) + rng.normal(size=3 * patients), np.repeat(
        np.arange(patients), 3
    ).tolist()


def skewed(rng, patients):
    return rng.binomial(1, 0.8, patients).astype(float), list(range(patients))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patients", "draw", "truth"), [(12, clustered_normal, 0), (60, clustered_normal, 0), (100, skewed, 0.8)]
)
def test_coverage_is_nominal(patients, draw, truth):
    assert 0.93 <= coverage(patients, 2000, draw, truth) <= 0.97


@pytest.mark.slow
def test_coverage_of_a_macro_f1_over_clustered_patients():
    """The page's first score, of 60 patients with 1 to 4 exams who differ in how well they are read."""
    rng = np.random.default_rng(8)

    def studies(patients):
        exams = rng.integers(1, 5, patients)
        who = np.repeat(np.arange(patients), exams)
        true = rng.random((len(who), 4)) < 0.3
        skill = rng.beta(6, 2, patients)[who][:, None]
        said = np.where(rng.random(true.shape) < skill, true, rng.random(true.shape) < 0.3)
        return Counts(list("abcd"), true.astype(float), said.astype(float)), who.tolist()

    whole, _ = studies(200_000)
    truth = whole.statistic(np.ones((1, len(whole.true))))[0, 0]
    hits = 0
    for trial in range(600):
        counts, who = studies(60)
        got = clustered_bootstrap(counts.statistic, who, replicates=400, seed=trial)[0]
        hits += got["low"] <= truth <= got["high"]
    assert 0.93 <= hits / 600 <= 0.97


def test_paired_test_finds_a_small_steady_difference_the_single_intervals_hide():
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 5, 200)
    first, second = hard + 0.3 + rng.normal(0, 0.5, 200), hard
    got = paired_bootstrap(mean_of(first), mean_of(second), range(200))[0]
    assert got["value"] == pytest.approx(0.3, abs=0.1)
    assert got["low"] > 0
    assert got["p"] < 0.01
    one, two = (clustered_bootstrap(mean_of(v), range(200))[0] for v in (first, second))
    assert one["low"] < two["high"]


def test_a_large_difference_has_a_p_that_a_correction_for_many_scores_leaves_small():
    gap = np.random.default_rng(9).normal(1, 1, 100)
    got = paired_bootstrap(mean_of(gap), mean_of(np.zeros(100)), range(100), replicates=200)[0]
    assert got["p"] == pytest.approx(stats.ttest_1samp(gap, 0).pvalue, rel=10)
    assert got["p"] < 1e-10


def test_paired_test_of_a_model_with_itself_finds_nothing():
    values = np.random.default_rng(6).normal(size=50)
    got = paired_bootstrap(mean_of(values), mean_of(values), range(50))[0]
    assert got["value"] == got["low"] == got["high"] == 0
    assert got["p"] > 0.9


@pytest.mark.slow
def test_paired_p_is_below_five_percent_five_percent_of_the_time():
    rng = np.random.default_rng(7)
    low = 0
    for trial in range(1500):
        gap = rng.normal(size=30)
        result = paired_bootstrap(mean_of(gap), mean_of(np.zeros(30)), range(30), replicates=600, seed=trial)[0]
        low += result["p"] < 0.05
        assert (result["p"] < 0.05) == (result["low"] > 0 or result["high"] < 0) or abs(result["p"] - 0.05) < 0.01
    assert 0.03 <= low / 1500 <= 0.07


def test_share_of_one_hundred_percent_is_not_certain():
    got = share([1] * 20, [1] * 20, range(20))
    assert got["value"] == 1
    assert got["low"] == pytest.approx(stats.binomtest(20, 20).proportion_ci().low)
    assert "20 patients agree" in got["note"]
    assert share([0] * 20, [1] * 20, range(20))["high"] == pytest.approx(stats.binomtest(0, 20).proportion_ci().high)


def test_a_perfect_score_is_not_certain_either():
    scores = clustered_bootstrap(lambda weights: np.ones((len(weights), 2)), range(20), trials=[20, 3])
    assert [score["low"] for score in scores] == [
        pytest.approx(stats.binomtest(n, n).proportion_ci().low) for n in (20, 3)
    ]
    assert clustered_bootstrap(lambda weights: np.full(len(weights), 0.5), range(20), trials=20)[0]["low"] == 0.5


def test_one_patient_has_a_value_and_no_interval():
    got = clustered_bootstrap(mean_of([1.0, 3.0]), ["a", "a"])[0]
    assert got == {"value": 2.0, "low": None, "high": None, "note": "one patient: no interval"}


def test_undefined_is_none_with_a_note():
    assert clustered_bootstrap(mean_of([np.nan, 1.0]), ["a", "b"])[0]["value"] is None
    assert share([0, 0], [0, 0], ["a", "b"]) == {"value": None, "low": None, "high": None, "note": "nothing to count"}


def test_no_study_is_an_error():
    with pytest.raises(ValueError, match="0 studies"):
        clustered_bootstrap(mean_of([]), [])


def test_a_statistic_of_the_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"shape \(3,\) for 1 rows"):
        clustered_bootstrap(lambda weights: np.zeros(3), ["a", "b"])


def exact(score, patients):
    """The score is 0 or 1 and its interval the exact binomial one of so many patients."""
    bound = 0.025 ** (1 / patients)
    return [score["low"], score["high"]] == pytest.approx([bound, 1.0] if score["value"] else [0.0, 1 - bound])


def test_a_score_without_spread_rests_on_the_patients_it_is_of():
    """A perfect code of two patients with five studies each, one right report of twenty patients, two events."""
    patients = np.arange(50) // 5
    truth = np.where(patients < 2, 1.0, 0.0)[:, None]
    codes = score_codes(0.1 + 0.8 * truth, truth, patients.tolist(), ["A"])
    assert exact(codes["per_code"]["A"]["auroc"], 2)
    assert exact(codes["macro_auroc"], 2)
    said = score_findings([{"ascites"}] * 20, [{"ascites"}] + [set()] * 19, range(20))
    assert said["finding_precision_micro"]["value"] == 1
    assert exact(said["finding_precision_micro"], 1)
    assert exact(score_findings([{"ascites"}] * 20, [{"ascites"}] * 20, range(20))["finding_f1"], 20)
    days, events = np.arange(10.0), np.arange(10) < 2
    told = score_outcomes({"death": (days, events, -days, {5: days / 10})}, {"death": range(10)})
    assert exact(told["c_index"], 2)
    assert exact(told["per_outcome"]["death"]["c_index_ipcw"], 2)
    assert exact(told["per_outcome"]["death"]["auc@5"], 2)
    missed = {"dice": 0.0, "nsd": 0.0, "hd95_mm": 0.0, "volume_error_ml": 0.0, "m3d_soft_dice": 0.0}
    masks = score_segmentation([missed] * 4, range(4))
    assert exact(masks["dice"], 4)
    assert [masks["hd95_mm"][end] for end in ("low", "high")] == [0.0, 0.0]
