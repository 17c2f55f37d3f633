"""Baselines: nobody keeps an output of their own patient; constant answers; a model that repeats itself is seen."""

import numpy as np
import pytest

from vol3d.evaluation.metrics.baselines import NORMAL_REPORT, always_normal, blind, collapse, key_prior, text_prior
from vol3d.evaluation.metrics.structured import score_structured
from vol3d.evaluation.metrics.vqa import score_questions


@pytest.mark.parametrize("seed", range(20))
def test_blind_never_deals_a_patient_its_own(seed):
    rng = np.random.default_rng(seed)
    patients = rng.integers(0, 8, 30).tolist()
    while 2 * max(patients.count(p) for p in patients) > 30:
        patients = rng.integers(0, 8, 30).tolist()
    dealt = blind(list(range(30)), patients, seed)
    assert sorted(dealt) == list(range(30))
    assert all(patients[i] != patients[j] for i, j in enumerate(dealt))


def test_blind_with_exactly_half_is_possible():
    patients = ["a", "a", "b", "c"]
    assert all(patients[i] != patients[j] for i, j in enumerate(blind([0, 1, 2, 3], patients)))


def test_blind_depends_on_the_seed():
    deals = {tuple(blind(list(range(50)), list(range(50)), seed)) for seed in range(10)}
    assert len(deals) == 10


def test_blind_refuses_one_big_patient():
    with pytest.raises(ValueError, match="patient 'a' has 3 of 4 studies"):
        blind([0, 1, 2, 3], ["a", "a", "a", "b"])


def test_always_normal_takes_the_house_style_or_the_fixed_report():
    assert always_normal(2, ["ok", "ill", "ok", "fine"], [set(), {"ascites"}, set(), set()]) == ["ok", "ok"]
    assert always_normal(2) == [NORMAL_REPORT] * 2


def test_priors():
    assert text_prior(["b", "a", "b"], 3) == ["b"] * 3
    assert key_prior([{"x"}, {"y"}, {"x"}], 2) == [{"x"}] * 2
    with pytest.raises(ValueError, match="0 answers to take the most common of, for 3 studies"):
        text_prior([], 3)


def test_of_equally_common_answers_the_order_of_rows_decides_nothing():
    texts, keys = ["effusion", "clear", "clear", "effusion"], [{"y", "x"}, {"z"}, {"z"}, {"x", "y"}]
    asked = [{"question": "Phase?", "answer": answer} for answer in texts]
    rows = [[{"finding": "cyst", "side": None, "size_mm": size, "certainty": "sure"}] for size in (9, 5, 7)]
    for step in (1, -1):
        assert text_prior(texts[::step], 1) == always_normal(1, texts[::step], [set()] * 4) == ["clear"]
        assert key_prior(keys[::step], 1) == [{"x", "y"}]
        open_ = score_questions({"s": asked[:1]}, {"s": [{"answer": "x"}]}, {"s": "p"}, training=asked[::step])
        assert open_["vqa_open"]["baselines"]["text_prior"]["exact_match"] == 0
        prior = score_structured(rows[:1], rows[:1], ["p"], training=rows[::step])["baselines"]["text_prior"]
        assert prior["size_error_mm"] == 4


def test_collapse_is_seen():
    truths = [f"report {i}" for i in range(10)]
    same = collapse(["normal  chest"] * 9 + ["normal chest"], truths)
    assert same["collapsed"]
    assert same["unique_share"] == 0.1
    assert not collapse(truths, truths)["collapsed"]
    assert collapse(["", " \n", "x"])["empty"] == 2
    assert collapse([])["unique_share"] is None


def test_many_normal_reports_are_no_collapse():
    truths = ["normal"] * 8 + ["ill", "very ill"]
    assert not collapse(truths, truths)["collapsed"]
