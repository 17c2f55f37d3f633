"""How many and how large: numbers that are names, sizes of today, and sizes in brackets behind their place."""

import pytest

from vol3d.text.parser import parse_findings

COUNTS = [
    ("A segment 7 cyst measuring 12 mm.", 1),
    ("There is a segment 8 hepatic lesion measuring 14 mm.", 1),
    ("Series 4 image 56 right upper lobe nodule.", 1),
    ("Segment 7/8 hepatic cyst.", 1),
    ("Bosniak 2 left renal cyst.", 1),
    ("LI-RADS 3 liver lesion.", 1),
    ("Grade 3 liver lesion.", 1),
    ("Level 3 nodule.", 1),
    ("5-6 mm right upper lobe nodule.", 1),
    ("Two segment 7 cysts.", 2),
    ("In segment 6, 3 cysts are seen.", 3),
    ("There are 4 right renal stones.", 4),
]

SIZES = [
    ("The largest right upper lobe nodule was 8 mm.", 8.0),
    ("The largest right upper lobe nodule was measured 23 mm.", 23.0),
    ("A nodule was seen measuring 8 mm in the right upper lobe.", 8.0),
    ("The right upper lobe nodule has increased from 8 mm to 12 mm.", 12.0),
    ("The right upper lobe nodule has grown from 8 x 6 mm to 12 x 10 mm.", 12.0),
    ("The right upper lobe nodule has decreased from 1.2 to 0.8 cm.", 8.0),
    ("Nodules ranging from 4 to 12 mm in the right upper lobe.", 12.0),
    ("Right upper lobe nodule increased to 12 mm from 8 mm.", 12.0),
    ("The left renal cyst was 8 mm on the prior study and is now 6 mm.", 6.0),
    ("The left renal cyst was 8 mm, now 6 mm.", 6.0),
    ("Left renal cyst 6 mm (was 8 mm).", 6.0),
    ("Left renal cyst measures 6 mm, was 8 mm.", 6.0),
    ("Left renal cyst measures 6 mm, previously 8 mm.", 6.0),
    ("Left renal cyst, 6 mm, 8 mm previously.", 6.0),
    ("Right upper lobe nodule, 4 mm, 1 cm from the pleura.", 4.0),
    ("Left renal cyst, 2 cm below the hilum, measuring 6 mm.", 6.0),
    ("Right upper lobe nodule, 9 mm, up from 5 mm.", 9.0),
    ("Right upper lobe nodule now 6 mm from the prior 8 mm.", 6.0),
]

BRACKETS = [
    (
        "Nodules in the right upper lobe (4 mm) and left lower lobe (7 mm).",
        [("left pulmonary nodule", "lower lobe", 7.0), ("right pulmonary nodule", "upper lobe", 4.0)],
    ),
    (
        "Nodules in the right upper lobe (4 mm, image 45), right lower lobe (6 mm) and left lower lobe (7 mm).",
        [("left pulmonary nodule", "lower lobe", 7.0), ("right pulmonary nodule", None, 6.0)],
    ),
    (
        "Stones in the right kidney (3 mm) and in the left kidney (5 mm).",
        [("left renal stone", None, 5.0), ("right renal stone", None, 3.0)],
    ),
    (
        "Nodules in both lungs (largest 8 mm).",
        [("left pulmonary nodule", None, 8.0), ("right pulmonary nodule", None, 8.0)],
    ),
    ("Nodule (5 mm) in the right upper lobe.", [("right pulmonary nodule", "upper lobe", 5.0)]),
]


@pytest.mark.parametrize(("text", "count"), COUNTS)
def test_a_number_that_names_a_thing_counts_none(text, count):
    assert [finding.count for finding in parse_findings(text)] == [count]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_the_size_is_that_of_today(text, size):
    assert [finding.size_mm for finding in parse_findings(text)] == [size]


@pytest.mark.parametrize(("text", "told"), BRACKETS)
def test_a_size_in_brackets_belongs_to_the_place_before_it(text, told):
    assert [(finding.key, finding.site, finding.size_mm) for finding in parse_findings(text)] == told
