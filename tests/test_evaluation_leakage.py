"""Leakage: shared patients, images and reports are found, and nothing else is."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from vol3d.evaluation.leakage import check_leakage, near_duplicates
from vol3d.evaluation.page import render_page

LONG = (
    "The liver is enlarged with a hypodense lesion in segment seven measuring two centimetres. The spleen is normal. "
    "There is a small left pleural effusion with adjacent atelectasis. No pneumothorax. The aorta is of normal calibre "
    "with mild calcified plaque. No lymph node is enlarged. Degenerative change of the lumbar spine is noted."
)


@dataclass
class Row:
    study: str
    patient: str
    split: str
    report: str = ""
    image: str = ""
    meta: dict = field(default_factory=dict)

    def __post_init__(self):
        self.image = self.image or f"{self.study}.nii.gz"


def test_a_manifest_of_the_scored_split_alone_is_not_called_clean():
    got = check_leakage([Row("a", "p1", "test"), Row("b", "p2", "test")])
    assert (got["other_studies"], got["clean"]) == (0, None)
    page = render_page({"leakage": got})
    assert "the manifest holds no study of another split" in page
    assert "Patients across splits" not in page
    both = check_leakage([Row("a", "p1", "test"), Row("b", "p2", "train")])
    assert "Patients across splits" in render_page({"leakage": both})


def test_a_clean_manifest_is_clean():
    rows = [Row("a", "p1", "train", "one report"), Row("b", "p2", "test", "another text"), Row("c", "p2", "test")]
    got = check_leakage(rows)
    assert got["clean"]
    assert got["test_reports"] == 1
    assert set(got) - {"clean", "test_reports", "definitions"} == set(got["definitions"])
    assert not any(
        got[name] for name in ("patients_across_splits", "near_duplicate_reports", "reports_seen_in_training")
    )


def test_each_leak_is_named():
    rows = [
        Row("a", "p1", "train", LONG, image="x.nii"),
        Row("b", "p1", "test", LONG.replace("two centimetres", "2 cm")),
        Row("c", "p3", "test", LONG.upper(), image="x.nii"),
        Row("d", "p4", "test", "Quite another report about the chest."),
        Row("e", "p1", "val"),
    ]
    got = check_leakage(rows, similarity=0.8)
    assert not got["clean"]
    assert got["patients_across_splits"] == ["p1"]
    assert got["images_across_splits"] == ["x.nii"]
    assert got["reports_seen_in_training"] == ["c"]
    assert got["near_duplicate_reports"] == ["b"]


def test_fingerprints_find_a_renamed_image():
    rows = [Row("a", "p1", "train"), Row("b", "p2", "test")]
    assert check_leakage(rows, fingerprints={"a": "f00", "b": "f00"})["images_across_splits"] == ["f00"]


def test_twins_are_alike_on_purpose():
    rows = [Row("a", "p1", "train"), Row("t", "p1", "test", meta={"twin_of": "a"})]
    assert check_leakage(rows)["clean"]


@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_equal_comparing_every_pair(seed):
    rng = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(500)]
    others = [[words[i] for i in rng.integers(0, 500, 120)] for _ in range(60)]
    texts = []
    for other in others:
        changed = list(other)
        for place in rng.integers(0, 120, rng.integers(0, 6)):
            changed[place] = "changed"
        texts.append(changed)

    def triples(text):
        return {tuple(text[i : i + 3]) for i in range(len(text) - 2)}

    expected = set()
    for i, one in enumerate(texts):
        for j, two in enumerate(others):
            a, b = triples(one), triples(two)
            if len(a & b) / len(a | b) >= 0.85:
                expected.add((i, j))
    got = near_duplicates([" ".join(t) for t in texts], [" ".join(t) for t in others], similarity=0.85)
    assert {(i, j) for i, j, _ in got} == expected
    assert 5 < len(expected) < 60


def test_short_and_empty_reports():
    assert near_duplicates(["", "normal"], ["", "normal"]) == [(1, 1, 1.0)]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("右侧胸腔积液。肝脏未见异常。", "左肺下叶结节, 直径八毫米。"),
        ("Выпот справа.", "Узел в печени."),
        ("Karaciğer büyümüş.", "Karaci er b y m."),
    ],
)
def test_reports_of_any_script_are_read(train, test):
    rows = [Row("a", "p1", "train", train), Row("b", "p2", "test", test), Row("c", "p3", "test", train)]
    assert check_leakage(rows)["reports_seen_in_training"] == ["c"]
