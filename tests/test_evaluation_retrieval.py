"""Retrieval: hand-worked ranks, ties and duplicates, pools, chance."""

import numpy as np
import pytest

from vol3d.evaluation.metrics.retrieval import rank_scores, score_retrieval


def unit_rows(count, width=16, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width))


def test_ranks_by_hand():
    similarity = np.array([[0.9, 0.1, 0.2], [0.5, 0.4, 0.1], [0.3, 0.2, 0.1]])
    got = rank_scores(similarity, np.eye(3, dtype=bool), (1, 2))
    assert got.tolist() == [[1, 1, 1], [0, 1, 1 / 2], [0, 0, pytest.approx(1 / 3)]]


def test_ties_are_broken_at_random_in_expectation():
    got = rank_scores(np.zeros((10, 10)), np.eye(10, dtype=bool), (1, 5, 10))
    assert got[0].tolist() == pytest.approx([0.1, 0.5, 1.0, 1 / 5.5])


@pytest.mark.parametrize("seed", range(3))
def test_expectation_equals_shuffling(seed):
    rng = np.random.default_rng(seed)
    similarity, right = rng.integers(0, 3, 8).astype(float), rng.random(8) < 0.3
    right[0] = True
    expected = rank_scores(similarity[None], right[None], (1, 3))[0]
    hits = np.zeros(2)
    for _ in range(4000):
        order = rng.permutation(8)
        order = order[np.argsort(-similarity[order], kind="stable")]
        first = int(np.flatnonzero(right[order])[0])
        hits += [first < 1, first < 3]
    assert expected[:2] == pytest.approx(hits / 4000, abs=0.03)


def test_perfect_constant_and_random_embeddings():
    rows, patients = unit_rows(150), list(range(150))
    perfect = score_retrieval(rows, rows, patients, pool=50, pools=5, replicates=50)
    assert perfect["recall@1"]["value"] == perfect["mrr"]["value"] == 1
    assert perfect["pool"] == 50
    assert perfect["text_to_image"]["recall@10"]["value"] == 1
    same = np.ones((150, 4))
    constant = score_retrieval(same, same, patients, pool=50, pools=5, replicates=50)
    assert constant["recall@1"]["value"] == pytest.approx(1 / 50)
    assert constant["baselines"]["chance"]["recall@5"] == pytest.approx(5 / 50)
    random = score_retrieval(rows, unit_rows(150, seed=9), patients, pool=50, pools=20, replicates=50)
    assert random["recall@10"]["value"] == pytest.approx(0.2, abs=0.08)


def test_equal_reports_are_one():
    rows = unit_rows(4)
    texts = rows[[1, 0, 2, 3]]  # 0 and 1 are swapped, but say the same
    strict = score_retrieval(rows, texts, list("abcd"), replicates=20)
    fair = score_retrieval(rows, texts, list("abcd"), reports=["Normal.", "normal. ", "x", "y"], replicates=20)
    assert strict["recall@1"]["value"] == 0.5
    assert fair["recall@1"]["value"] == 1
    assert fair["duplicates"] == 2


def test_m3d_definition_when_there_is_one_pool():
    import torch

    images, texts = unit_rows(60, seed=1), unit_rows(60, seed=1) + unit_rows(60, seed=2)
    got = score_retrieval(images, texts, list(range(60)), pool=1000, replicates=20)
    similarity = (
        torch.nn.functional.normalize(torch.tensor(images)) @ torch.nn.functional.normalize(torch.tensor(texts)).T
    )
    top = similarity.topk(5, dim=1).indices
    assert got["pool"] == 60
    assert got["recall@5"]["value"] == pytest.approx(float((top == torch.arange(60)[:, None]).any(1).double().mean()))


def test_one_study_and_bad_rows():
    assert score_retrieval(unit_rows(1), unit_rows(1), ["a"])["recall@1"]["value"] is None
    bad = unit_rows(3)
    bad[1, 0] = np.nan
    with pytest.raises(ValueError, match=r"text embedding of study 1 is not finite \(1 of 3"):
        score_retrieval(unit_rows(3), bad, list("abc"))
    with pytest.raises(ValueError, match="3 image and 2 text embeddings"):
        score_retrieval(unit_rows(3), unit_rows(2), list("abc"))


def test_a_pool_of_distinct_texts_holds_each_thing_said_once():
    rows = unit_rows(40)
    said = ["normal"] * 30 + [f"finding {number}" for number in range(10)]
    images = np.where(np.arange(40)[:, None] < 30, 1.0, rows)  # normal volumes look alike
    words = [f"{text} in wording {number}" for number, text in enumerate(said)]
    mixed = score_retrieval(images, rows, list(range(40)), reports=words, pool=11, pools=30, replicates=20)
    apart = score_retrieval(
        images, rows, list(range(40)), reports=words, distinct=said, pool=11, pools=30, replicates=20
    )
    assert (apart["pool"], apart["distinct"], apart["pools"], mixed["distinct"]) == (11, 11, 30, 40)
    assert mixed["recall@1"]["value"] < 0.5, "no volume tells which wording its report chose"
    assert apart["image_to_text"]["recall@1"]["value"] > 0.85
    assert apart["baselines"]["chance"]["recall@1"] == pytest.approx(1 / 11)
    assert score_retrieval(images, rows, list(range(40)), distinct=said, replicates=5)["pool"] == 11
    with pytest.raises(ValueError, match=r"40 studies, 3 entries in `distinct`"):
        score_retrieval(images, rows, list(range(40)), distinct=["a", "b", "c"])
