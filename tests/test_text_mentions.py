"""Which organ a nodule, cyst or lesion is in: by its lobe, pole or segment, and by the header it stands under."""

import pytest

from vol3d.text.parser import finding_keys, parse_findings

LIVER, LEFT_LUNG, RIGHT_LUNG = {"liver lesion"}, {"left pulmonary nodule"}, {"right pulmonary nodule"}

PARTS = [
    ("Left hepatic lobe lesion measuring 12 mm.", LIVER),
    ("12 mm hypodense lesion in the caudate lobe.", LIVER),
    ("Multiple lesions in both lobes of the liver.", LIVER),
    ("Scattered cysts in both hepatic lobes.", {"hepatic cyst"}),
    ("The right lobe of the liver contains a 2 cm cyst.", {"hepatic cyst"}),
    ("Right lobe liver lesion measuring 2 cm.", LIVER),
    ("2 cm lesion in the right lobe.", LIVER),
    ("Lesion in the left hepatic lobe and nodule in the left lower lobe.", LIVER | LEFT_LUNG),
    ("12 mm nodule in the left lobe of the thyroid gland.", set()),
    ("Left thyroid lobe nodule 1.2 cm.", set()),
    ("Nodules in the right lobe and left lobe of an enlarged thyroid.", set()),
    ("Heterogeneous thyroid with a 2 cm nodule in the right lobe.", set()),
    ("8 mm nodule in the lower pole of the left lobe of the thyroid.", set()),
    ("Enhancing mass in the left lobe of the prostate.", set()),
    ("Mass in the right temporal lobe.", set()),
    ("Left thyroid lobe nodule and 5 mm left upper lobe nodule.", LEFT_LUNG),
    ("Nodules in both lower lobes.", LEFT_LUNG | RIGHT_LUNG),
    ("Right upper and lower lobe nodules.", RIGHT_LUNG),
    ("Left lower-lobe nodule.", LEFT_LUNG),
    ("Nodule in segment 6 of the right lung.", RIGHT_LUNG),
    ("Lesion in segment 6.", LIVER),
    ("Cyst in the upper pole of the spleen.", set()),
    ("Cyst in the upper pole of the left kidney.", {"left renal cyst"}),
    ("Left upper pole cyst.", {"left renal cyst"}),
]

HEADERS = [
    ("THYROID: 8 mm nodule.", set()),
    ("THYROID: 15 mm nodule in the left lobe.", set()),
    ("THYROID: Right lobe: 12 mm nodule. Left lobe: normal.", set()),
    ("UPPER ABDOMEN: 9 mm hypodense lesion, too small to characterize.", set()),
    (
        "UPPER ABDOMEN: 9 mm lesion in segment 7. Cyst in the upper pole of the left kidney.",
        LIVER | {"left renal cyst"},
    ),
    ("BREASTS: 1 cm mass on the right.", set()),
    ("CHEST WALL AND AXILLA: 2 cm mass.", set()),
    ("NECK: 1 cm nodule.", set()),
    ("ABDOMEN/PELVIS: 3 cm mass.", set()),
    ("TRACHEA AND BRONCHI: 4 mm nodule.", {"pulmonary nodule"}),
    ("Nodules: 4 mm, right upper lobe.", RIGHT_LUNG),
    ("Addition: 4 mm nodule.", {"pulmonary nodule"}),
    ("LIVER: Cysts in both lobes.", {"hepatic cyst"}),
    ("KIDNEYS:\nRight: 5 mm stone.\nLeft: 12 mm cyst in the upper pole.", {"right renal stone", "left renal cyst"}),
    ("The left kidney demonstrates the following: 12 mm cyst.", {"left renal cyst"}),
    ("No evidence of the following in the liver: mass or cyst.", set()),
]


@pytest.mark.parametrize(("text", "keys"), PARTS)
def test_a_lobe_or_pole_is_of_the_organ_it_is_tied_to(text, keys):
    assert finding_keys(text) == keys


@pytest.mark.parametrize(("text", "keys"), HEADERS)
def test_a_header_outside_the_table_ends_the_organ_before_it(text, keys):
    assert finding_keys(f"LUNGS: Clear.\n{text}") == keys


def test_a_lobe_before_a_colon_is_the_site_of_what_follows():
    (cyst,) = parse_findings("LIVER: Right lobe: 12 mm cyst. Left lobe: normal.")
    assert (cyst.key, cyst.site, cyst.size_mm) == ("hepatic cyst", "right lobe", 12.0)
