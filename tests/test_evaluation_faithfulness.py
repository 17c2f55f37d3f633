"""Twins and probes: a model that looks passes, one that does not is caught by each."""

from dataclasses import dataclass

import numpy as np
import pytest

from vol3d.evaluation.faithfulness import TwinPair, prior_mentions, twin_consistency, twin_pairs

LEFT, RIGHT = "left pleural effusion", "right pleural effusion"


def pair(change, key, before, after, number=0, **sizes):
    return TwinPair(f"s{number}", f"t{number}", f"p{number}", change, key, frozenset(before), frozenset(after), **sizes)


@pytest.mark.parametrize(
    ("case", "changed", "others"),
    [
        (pair("remove", LEFT, {LEFT, "ascites"}, {"ascites"}), True, 0),
        (pair("remove", LEFT, {LEFT}, {LEFT}), False, 0),
        (pair("remove", LEFT, set(), set()), False, 0),
        (pair("remove", LEFT, set(), {LEFT}), False, 0),
        (pair("remove", LEFT, {LEFT}, {RIGHT}), True, 1),
        (pair("add", LEFT, set(), {LEFT}), True, 0),
        (pair("add", LEFT, {LEFT}, set()), False, 0),
        (pair("swap", LEFT, {LEFT}, {RIGHT}), True, 0),
        (pair("swap", LEFT, {LEFT}, {LEFT, RIGHT}), False, 0),
        (pair("swap", LEFT, {LEFT, "ascites"}, {RIGHT, "gallstones"}), True, 2),
        (pair("resize", LEFT, {LEFT}, {LEFT}), None, 0),
        (pair("resize", LEFT, {LEFT}, {LEFT}, sizes_mm=(10.0, 18.0), true_sizes_mm=(9.0, 20.0)), True, 0),
        (pair("resize", LEFT, {LEFT}, {LEFT}, sizes_mm=(10.0, 8.0), true_sizes_mm=(9.0, 20.0)), False, 0),
    ],
)
def test_one_pair(case, changed, others):
    assert case.changed is changed
    assert case.others[0] == others


def test_shares_by_hand():
    pairs = [
        pair("remove", LEFT, {LEFT, "ascites"}, {"ascites"}, 0),  # TU, unchanged
        pair("remove", LEFT, {LEFT, "ascites"}, set(), 1),  # TU, ascites lost
        pair("remove", LEFT, {LEFT}, {LEFT}, 2),  # SB
        pair("remove", LEFT, set(), {LEFT}, 3),  # IG
        pair("resize", "ascites", {"ascites"}, {"ascites"}, 4),  # not judged
    ]
    got = twin_consistency(pairs, replicates=50)
    assert got["changed"]["value"] == pytest.approx(2 / 4)
    assert got["unchanged"]["value"] == pytest.approx(4 / 5)
    assert got["both"]["value"] == pytest.approx(1 / 4)
    assert got["sb"]["value"] == got["ig"]["value"] == pytest.approx(1 / 4)
    assert got["id"]["value"] == pytest.approx(1 / 2)
    assert (got["pairs"], got["not_judged"]) == (5, 1)
    assert got["by_change"]["remove"]["pairs"] == 4
    assert got["by_change"]["resize"]["changed"]["value"] is None


def test_no_pairs_is_undefined():
    assert twin_consistency([])["changed"]["note"] == "no twin pairs"


@dataclass
class Row:
    study: str
    patient: str
    meta: dict | None = None


def test_pairs_of_a_manifest():
    rows = [Row("s", "p"), Row("t", "p", {"twin_of": "s", "changed": LEFT, "change": "swap"})]
    (got,) = twin_pairs(rows, {"s": {LEFT}, "t": {RIGHT}})
    assert got.changed
    assert (got.study, got.twin) == ("s", "t")
    with pytest.raises(ValueError, match="'s' / 't': no prediction for 't'"):
        twin_pairs(rows, {"s": {LEFT}})


def told(change, number, before, after):
    return pair(change, LEFT, before, after, number)


def test_twins_tell_a_model_that_looks_from_one_that_draws():
    rng = np.random.default_rng(0)
    sees = [told("remove", i, {LEFT}, set()) for i in range(40)]
    draws = [told("remove", i, *({LEFT} if rng.random() < 0.5 else set() for _ in range(2))) for i in range(40)]
    same = [told("remove", i, {LEFT}, {LEFT}) for i in range(40)]
    got = [twin_consistency(pairs, replicates=100) for pairs in (sees, draws, same, sees[:3])]
    assert [block["caught"] for block in got] == [[], ["changed"], ["changed"], []]
    assert [block["judged"] for block in got] == [["changed"], ["changed"], ["changed"], []], "three cannot tell"
    assert got[0]["changed"]["control"] == 0
    assert got[1]["changed"]["value"] > 0.1  # follows the change now and then, by chance alone
    assert got[1]["changed"]["over_control"]["low"] < 0


def test_mentions_of_an_exam_that_does_not_exist():
    said = [
        "Compared with the prior exam, the nodule has grown.",
        "Unchanged effusion.",
        "Interval increase in ascites.",
        "New since the last study.",
        "Stable in size.",
    ]
    silent = [
        "Stable fracture of L2.",
        "The aorta measures 4 cm.",
        "No acute change of the bowel.",
        "Normal examination.",
    ]
    assert prior_mentions(said, list("abcde"))["value"] == 1
    assert prior_mentions(silent, list("abcd"))["value"] == 0
    half = prior_mentions(said[:2], ["a", "b"], [True, False])
    assert half["value"] == 1
