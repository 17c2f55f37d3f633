"""Outcomes: equal to scikit-survival 0.28 and lifelines 0.30 on 40 studies with ties and censoring."""

import time

import numpy as np
import pytest

from vol3d.evaluation.metrics.survival import c_index, c_index_ipcw, score_outcome, score_outcomes

# fmt: off
DAYS = np.array([37, 497, 417, 217, 310, 220, 7, 122, 86, 253, 7, 221, 1044, 53, 23, 240, 504, 506, 144, 19, 884, 50,
    92, 207, 49, 151, 52, 356, 658, 32, 777, 8, 423, 307, 167, 78, 499, 100, 134, 54], dtype=float)
EVENTS = np.array([0, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 1, 0,
    1, 0, 0, 0, 1, 1], dtype=bool)
RISK = np.array([0.1, -0.1, 0.6, 0.1, -0.5, 0.4, 1.3, 0.9, -0.7, -1.3, -0.6, 0.0, -2.3, -0.2, -1.2, -0.7, -0.5, -0.3,
    0.4, 1.0, -0.1, 1.4, -0.7, 0.4, 0.9, 0.1, -0.7, -0.9, -0.5, 0.2, -1.0, -0.2, -0.2, 0.5, 0.2, 0.4, -0.7, -0.1, 0.8,
    1.5])
SURVIVAL = np.array([0.715, 0.675, 0.703, 0.619, 0.863, 0.662, 0.232, 0.511, 0.855, 0.958, 0.814, 0.732, 0.975, 0.729,
    0.93, 0.868, 0.891, 0.818, 0.73, 0.537, 0.712, 0.387, 0.863, 0.515, 0.34, 0.666, 0.856, 0.91, 0.887, 0.584, 0.894,
    0.86, 0.759, 0.532, 0.665, 0.53, 0.923, 0.756, 0.527, 0.47])
# fmt: on
PATIENTS = list(range(40))


def test_equals_scikit_survival_and_lifelines():
    got = score_outcome(DAYS, EVENTS, RISK, PATIENTS, survival={100: SURVIVAL, 250: SURVIVAL}, replicates=200)
    assert got["c_index"]["value"] == pytest.approx(0.75)  # concordance_index_censored, and lifelines
    assert got["c_index_ipcw"]["value"] == pytest.approx(0.747980045868245)  # concordance_index_ipcw
    assert got["auc@100"]["value"] == pytest.approx(0.67970576)  # cumulative_dynamic_auc
    assert got["auc@250"]["value"] == pytest.approx(0.80303295)
    assert got["brier@100"]["value"] == pytest.approx(0.15642816)  # brier_score
    assert got["brier@250"]["value"] == pytest.approx(0.25202254)
    assert got["c_index"]["low"] < 0.75 < got["c_index"]["high"]
    assert got["events"] == 26
    assert got["baselines"]["constant"]["brier@250"] < 0.25


def test_c_index_by_hand():
    days, events = np.array([1.0, 2.0, 3.0]), np.array([True, False, True])
    assert c_index(days, events, np.array([3.0, 2.0, 1.0])) == 1  # pairs (1,2) and (1,3)
    assert c_index(days, events, np.array([2.0, 3.0, 1.0])) == 0.5
    assert c_index(days, events, np.array([1.0, 1.0, 1.0])) == 0.5
    assert np.isnan(c_index(days, np.zeros(3, dtype=bool), np.ones(3)))


def test_unos_c_by_hand():
    """Censored at 2 with three at risk: G is 1 before and 2/3 after, so the pair (3, 4) weighs 9/4 of a pair of 1."""
    days, events = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, True])
    risk = np.array([4.0, 3.0, 1.0, 2.0])
    assert c_index(days, events, risk) == pytest.approx(3 / 4)
    assert c_index_ipcw(days, events, risk) == pytest.approx(3 / (3 + 9 / 4))


def test_blind_stands_beside_the_constant():
    baselines = score_outcome(DAYS, EVENTS, RISK, PATIENTS, replicates=20)["baselines"]
    assert abs(baselines["blind"]["c_index"] - 0.5) < 0.15
    assert baselines["constant"]["c_index_ipcw"] == 0.5


def test_nothing_comparable_is_undefined_and_says_so():
    got = score_outcome(DAYS, np.zeros(40, dtype=bool), RISK, PATIENTS, survival={100: SURVIVAL}, replicates=20)
    assert got["c_index"]["value"] is None
    assert "no pair" in got["c_index"]["note"]
    assert got["auc@100"]["value"] is None


def test_an_outcome_without_an_event_does_not_take_the_others_with_it():
    none, one = np.zeros(40, dtype=bool), np.zeros(40, dtype=bool)
    one[np.argmin(DAYS)] = True
    alone = score_outcome(DAYS, EVENTS, RISK, PATIENTS, replicates=200)
    for rare, value in ((none, 0.75), (one, (0.75 + c_index(DAYS, one, RISK)) / 2)):
        tables = {"death": (DAYS, EVENTS, RISK, {}), "stroke": (DAYS, rare, RISK, {})}
        got = score_outcomes(tables, dict.fromkeys(tables, PATIENTS), replicates=200)
        assert got["c_index"]["value"] == pytest.approx(value)
        assert got["c_index"]["low"] < value < got["c_index"]["high"]
        assert got["per_outcome"]["death"]["c_index"] == alone["c_index"]
        told = got["c_index"].get("note", "")
        assert ("without stroke: no pair of studies" in told) == (rare is none)
        for name in ("c_index", "c_index_ipcw") if rare is none else ():
            assert got["baselines"]["blind"][name] == alone["baselines"]["blind"][name]
    got = score_outcomes({"stroke": (DAYS, none, RISK, {})}, {"stroke": PATIENTS}, replicates=20)
    assert got["c_index"]["value"] is got["baselines"]["blind"]["c_index"] is None


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="40 times, 40 events, 39 risks"):
        score_outcome(DAYS, EVENTS, RISK[1:], PATIENTS)
    with pytest.raises(ValueError, match=r"study 0: time is -1\.0"):
        score_outcome(np.r_[-1.0, DAYS[1:]], EVENTS, RISK, PATIENTS)


@pytest.mark.slow
def test_four_thousand_studies_with_intervals():
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    score_outcome(rng.exponential(300, 4000), rng.random(4000) < 0.3, rng.normal(size=4000), list(range(4000)))
    assert time.perf_counter() - start < 60
