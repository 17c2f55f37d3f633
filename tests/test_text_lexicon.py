import random

import pytest
from finding_samples import random_findings
from hypothesis import given, settings
from hypothesis import strategies as st

from vol3d.phantom.report import write_report
from vol3d.text.lexicon import swap_finding, swap_sides
from vol3d.text.ontology import Finding, in_report_order
from vol3d.text.parser import parse_findings


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("Left pleural effusion.", "Right pleural effusion."),
        ("LEFT-SIDED effusion", "RIGHT-SIDED effusion"),
        ("left lower lobe, LLL", "right lower lobe, RLL"),
        ("nodule in the right middle lobe", "nodule in the lingula"),
        ("Lingula is clear.", "Right middle lobe is clear."),
        ("right greater than left", "left greater than right"),
        ("effusions, R>L and L > R", "effusions, L>R and R > L"),
        ("stone (L)", "stone (R)"),
        ("kidney_left", "kidney_right"),
        ("left_kidney", "right_kidney"),
        ("lung_upper_lobe_left", "lung_upper_lobe_right"),
        ("heart_ventricle_left", "heart_ventricle_left"),
        ("leftward shift", "rightward shift"),
        ("bilateral effusions on both sides", "bilateral effusions on both sides"),
        ("the right lobe of the liver and the spleen", "the right lobe of the liver and the spleen"),
        ("left ventricle, left main coronary artery", "left ventricle, left main coronary artery"),
        ("upright, outright, cleft", "upright, outright, cleft"),
        ("L1 and R91.1", "L1 and R91.1"),
        ("Small R effusion, 4 mm stone on the L.", "Small L effusion, 4 mm stone on the R."),
        ("R. renal calculus; L kidney: normal", "L. renal calculus; R kidney: normal"),
        ("RT effusion, post-RT change, RT fibrosis on the LT", "LT effusion, post-RT change, RT fibrosis on the RT"),
        ("2 L drained, L 4, L spine, R/O PE, R. Smith", "2 L drained, L 4, L spine, R/O PE, R. Smith"),
        ("", ""),
    ],
)  # fmt: skip
def test_mirror_image(text, mirrored):
    assert swap_sides(text) == mirrored
    assert swap_sides(mirrored) == text


PIECES = [
    *(
        "left",
        "Right",
        "LEFT",
        "right middle lobe",
        "lingula",
        "Lingula",
        "RML",
        "lul",
        "RLL",
        "middle lobe",
        "bilateral",
    ),
    *(
        "left ventricle",
        "right lobe of the liver",
        "kidney_left",
        "left-sided",
        "R>L",
        "(L)",
        "nodule",
        "in the",
        "L1",
        ",",
        ".",
    ),
    *("leftward", "all right", "left in place", "both", "lt", "RUQ", "upper lobe of the left lung", "left middle lobe"),
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_mirroring_twice_gives_the_text_back(pieces):
    text = " then ".join(pieces)
    assert swap_sides(swap_sides(text)) == text


def test_finding_moves_with_its_lobe():
    nodule = Finding("pulmonary nodule", "right", "middle lobe", 5.0)
    assert swap_finding(nodule) == Finding("pulmonary nodule", "left", "lingula", 5.0)
    assert swap_finding(swap_finding(nodule)) == nodule
    assert swap_finding(Finding("ascites")) == Finding("ascites")


def test_mirrored_report_says_the_mirrored_findings():
    rng = random.Random(3)
    for seed in range(12):
        findings = random_findings(rng, 0.2)
        text = write_report(findings, seed=seed).text
        assert parse_findings(swap_sides(text)) == in_report_order(swap_finding(f) for f in findings)
