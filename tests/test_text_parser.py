"""The parser that all report scores rest on, against sentences written by hand."""

import random
import time

import pytest

from vol3d.text.ontology import FINDINGS, Finding
from vol3d.text.parser import finding_keys, finding_labels, parse_findings, parse_mentions

PLEURAL, BOTH_PLEURAL = "left pleural effusion", {"left pleural effusion", "right pleural effusion"}

POSITIVE = [
    ("There is a small left pleural effusion.", {PLEURAL}),
    ("Small left-sided pleural effusion.", {PLEURAL}),
    ("Pleural effusion on the left.", {PLEURAL}),
    ("Moderate bilateral pleural effusions, right greater than left.", BOTH_PLEURAL),
    ("Left and right pleural effusions.", BOTH_PLEURAL),
    ("Left greater than right pleural effusions.", BOTH_PLEURAL),
    ("Pleural effusions, left > right.", BOTH_PLEURAL),
    ("Trace pleural fluid on both sides.", BOTH_PLEURAL),
    ("Large right pneumothorax with mediastinal shift.", {"right pneumothorax"}),
    ("Left hydropneumothorax.", {"left pleural effusion", "left pneumothorax"}),
    ("5 mm solid nodule in the right upper lobe.", {"right pulmonary nodule"}),
    ("RUL nodule measuring 5 mm.", {"right pulmonary nodule"}),
    ("Solid nodule in the lingula.", {"left pulmonary nodule"}),
    ("A nodule in the middle lobe measures 6 mm.", {"right pulmonary nodule"}),
    ("Nodules in the left upper lobe and right lower lobe.", {"left pulmonary nodule", "right pulmonary nodule"}),
    ("Multiple bilateral pulmonary nodules.", {"left pulmonary nodule", "right pulmonary nodule"}),
    ("Consolidation in the left lower lobe, likely pneumonia.", {"left consolidation"}),
    ("LLL airspace disease.", {"left consolidation"}),
    ("Bibasilar atelectasis.", {"left atelectasis", "right atelectasis"}),
    ("Left upper and lower lobe consolidation.", {"left consolidation"}),
    ("Severe centrilobular emphysema.", {"emphysema"}),
    ("Upper lobe predominant emphysematous changes.", {"emphysema"}),
    ("The heart is mildly enlarged.", {"cardiomegaly"}),
    ("Enlarged cardiac silhouette.", {"cardiomegaly"}),
    ("Small pericardial effusion.", {"pericardial effusion"}),
    ("Pericardial and left pleural effusion.", {"pericardial effusion", PLEURAL}),
    ("Extensive calcification of the coronary arteries.", {"coronary artery calcification"}),
    ("Three-vessel coronary artery calcifications.", {"coronary artery calcification"}),
    ("Infrarenal abdominal aortic aneurysm measuring 5.2 cm.", {"aortic aneurysm"}),
    ("The ascending aorta is aneurysmal.", {"aortic aneurysm"}),
    ("Diffuse fatty infiltration of the liver.", {"hepatic steatosis"}),
    ("The liver is diffusely low in attenuation, consistent with steatosis.", {"hepatic steatosis"}),
    ("Hypodense lesion in the right hepatic lobe.", {"liver lesion"}),
    ("Multiple hepatic metastases.", {"liver lesion"}),
    ("Segment 7 lesion measuring 2 cm.", {"liver lesion"}),
    ("Simple cyst in segment IVa.", {"hepatic cyst"}),
    ("Cholelithiasis without cholecystitis.", {"gallstones"}),
    ("There are stones in the gallbladder.", {"gallstones"}),
    ("Spleen is enlarged, measuring 15 cm.", {"splenomegaly"}),
    ("Hepatosplenomegaly.", {"splenomegaly"}),
    ("Nonobstructing 4 mm calculus in the lower pole of the left kidney.", {"left renal stone"}),
    ("Bilateral nephrolithiasis.", {"left renal stone", "right renal stone"}),
    ("Moderate right hydroureteronephrosis.", {"right hydronephrosis"}),
    ("The left collecting system is mildly dilated.", {"left hydronephrosis"}),
    ("Simple cyst in the interpolar region of the right kidney.", {"right renal cyst"}),
    ("Hepatic and bilateral renal cysts.", {"hepatic cyst", "left renal cyst", "right renal cyst"}),
    ("Large volume ascites.", {"ascites"}),
    ("Small amount of free fluid in the pelvis.", {"ascites"}),
    ("Findings of small bowel obstruction.", {"bowel obstruction"}),
    ("High-grade SBO with transition point.", {"bowel obstruction"}),
    ("Fat-containing left inguinal hernia.", {"left inguinal hernia"}),
    ("Moderate sliding hiatal hernia.", {"hiatal hernia"}),
    ("L1 compression fracture with 30% height loss.", {"vertebral fracture"}),
    ("Acute fracture of the T12 vertebral body.", {"vertebral fracture"}),
    ("Lytic lesion in the left iliac bone.", {"bone metastasis"}),
    ("Osseous metastatic disease.", {"bone metastasis"}),
]

NEGATED = [
    "No pleural effusion.",
    "No pleural effusion, pneumothorax or consolidation.",
    "There is no pneumothorax, pleural effusion, or focal consolidation.",
    "There is no renal stone or hydronephrosis. There is no ascites.",
    "No evidence of bowel obstruction.",
    "No definite pulmonary nodule is seen.",
    "Without pleural effusion or pneumothorax.",
    "Pleural effusion is absent.",
    "Pneumothorax is not seen.",
    "Pleural effusion, pneumothorax and consolidation are not identified.",
    "The lungs are free of consolidation or nodules.",
    "Pneumothorax has been ruled out.",
    "Previously seen left pleural effusion has resolved.",
    "Interval resolution of the right pneumothorax.",
    "The left effusion is no longer seen.",
    "The heart is not enlarged.",
    "The spleen is not enlarged.",
    "Negative for pneumothorax.",
    "Neither pleural effusion nor pneumothorax.",
    "No left or right pleural effusion.",
    "No pleural or pericardial effusion.",
    "No hepatic or renal cysts.",
    "No large pleural effusion or pneumothorax.",
    "Pleural effusion: none.",
    "Pneumothorax: absent",
    "Hydronephrosis: No.",
    "Kidneys: No stones, masses or hydronephrosis.",
    "Aorta: normal in caliber without aneurysm.",
    "Bones: No acute fracture or suspicious osseous lesion.",
    "Liver: Normal in size. No focal lesion.",
    "The kidneys show no hydronephrosis.",
    "The gallbladder does not contain stones.",
    "Pneumothorax is unlikely.",
    "No CT evidence of hepatic steatosis, cholelithiasis, or splenomegaly.",
    "Lungs are clear. Heart size is normal. The liver is unremarkable.",
    "No inguinal or hiatal hernia.",
    "No free fluid or free air in the abdomen.",
    "Absence of pleural effusion.",
]

OTHER = [
    "History of pneumothorax.",
    "Status post repair of left inguinal hernia.",
    "Prior CT showed a left pleural effusion.",
    "INDICATION: Rule out pneumothorax.\nFINDINGS: The lungs are clear.",
    "CLINICAL HISTORY: known splenomegaly and ascites.\nTECHNIQUE: CT.\nFINDINGS:\nNormal.",
    "Evaluate for pleural effusion.",
    "Thyroid nodule in the left lobe of the gland.",
    "2 cm cyst in the tail of the pancreas.",
    "Right adrenal nodule.",
    "Subcutaneous emphysema.",
    "Left knee joint effusion.",
    "Umbilical hernia containing fat.",
    "Old left rib fracture.",
    "Bladder stone.",
    "Right ovarian cyst measuring 3 cm.",
    "Splenic artery aneurysm.",
    "Enlarged mediastinal lymph nodes.",
]

TRICKY = [
    ("No right pleural effusion but a small left pneumothorax.", {"left pneumothorax"}),
    ("No effusion; left pneumothorax is present.", {"left pneumothorax"}),
    ("No pneumothorax. Left pleural effusion.", {PLEURAL}),
    ("No abnormality except a left pneumothorax.", {"left pneumothorax"}),
    ("Unremarkable except for a small left pleural effusion.", {PLEURAL}),
    ("Other than a 5 mm nodule in the left lung, no abnormality.", {"left pulmonary nodule"}),
    ("No consolidation, with a small left pleural effusion.", {PLEURAL}),
    ("No pneumothorax, small left pleural effusion.", {PLEURAL}),
    ("No pneumothorax and a 5 mm nodule in the right lower lobe.", {"right pulmonary nodule"}),
    ("No effusion on the left, moderate effusion on the right.", {"right pleural effusion"}),
    ("Left pleural effusion without pneumothorax or consolidation.", {PLEURAL}),
    ("Left pleural effusion is seen and right pneumothorax is not seen.", {PLEURAL}),
    ("There is a left pleural effusion and pneumothorax is not seen.", {PLEURAL}),
    ("No change in the left pleural effusion.", {PLEURAL}),
    ("Left pleural effusion, not significantly changed.", {PLEURAL}),
    ("Previously seen left pleural effusion is unchanged.", {PLEURAL}),
    ("Left pleural effusion, larger than on the prior study.", {PLEURAL}),
    ("Compared to prior, the left pleural effusion has increased.", {PLEURAL}),
    ("Partially resolved left pneumothorax.", {"left pneumothorax"}),
    ("A small pneumothorax on the left cannot be excluded.", {"left pneumothorax"}),
    ("Possible left pneumothorax.", {"left pneumothorax"}),
    ("The right kidney contains a 5 mm stone, the left kidney a 2 cm cyst.", {"right renal stone", "left renal cyst"}),
    ("The left kidney has no stone but shows mild hydronephrosis.", {"left hydronephrosis"}),
    ("Left renal cyst. Right kidney is normal.", {"left renal cyst"}),
    ("Right kidney: 4 mm stone. Left kidney: mild hydronephrosis.", {"right renal stone", "left hydronephrosis"}),
    ("Left pleural effusion and right lower lobe consolidation.", {PLEURAL, "right consolidation"}),
    ("Left pleural effusion with adjacent atelectasis.", {PLEURAL, "left atelectasis"}),
    ("Left pneumothorax and pleural effusion.", {"left pneumothorax", PLEURAL}),
    ("Pneumothorax and pleural effusion on the left.", {"left pneumothorax", PLEURAL}),
    ("Nodule in the left lung and a right pleural effusion.", {"left pulmonary nodule", "right pleural effusion"}),
    ("Lesion in the left hepatic lobe and a right renal cyst.", {"liver lesion", "right renal cyst"}),
    ("Lytic lesion of the right iliac bone; left renal stone.", {"bone metastasis", "left renal stone"}),
    ("Left inguinal hernia. Calcification of the left main coronary artery.",
     {"left inguinal hernia", "coronary artery calcification"}),
    ("Kidneys: 12 mm cyst on the left. No stones.", {"left renal cyst"}),
    ("Liver: Two cysts, the largest 15 mm.", {"hepatic cyst"}),
    ("Hydronephrosis: mild on the right.", {"right hydronephrosis"}),
    ("Ascites: present.", {"ascites"}),
    ("Pleural effusion.", {"pleural effusion"}),
    ("FINDINGS: Pleural effusion. IMPRESSION: Left pleural effusion.", {PLEURAL}),
    ("Cysts are seen in the liver and in the left kidney.", {"hepatic cyst", "left renal cyst"}),
    ("Atelectasis adjacent to the left pleural effusion.", {"left atelectasis", PLEURAL}),
    ("The right lower lobe shows consolidation with a small associated effusion.",
     {"right consolidation", "right pleural effusion"}),
    ("In the left lung there is a nodule, and the right lung is clear.", {"left pulmonary nodule"}),
    ("Stones in both kidneys.", {"left renal stone", "right renal stone"}),
    ("IMPRESSION: 1. Small left pleural effusion. 2. No pneumothorax. 3. Splenomegaly.", {PLEURAL, "splenomegaly"}),
]  # fmt: skip

REAL_LIFE = [
    (
        "Small bilateral pleural effusions, left larger than right, with associated compressive atelectasis.",
        {"left pleural effusion", "right pleural effusion", "left atelectasis", "right atelectasis"},
    ),
    ("No pleural effusion or thickening was detected.", set()),
    ("Bilateral pleural effusion was not observed.", set()),
    (
        "In the upper lobe of the right lung, a nonspecific pulmonary nodule of 4 mm in diameter was observed.",
        {"right pulmonary nodule"},
    ),
    ("Calcific atheroma plaques are observed in the aorta and coronary arteries.", {"coronary artery calcification"}),
    ("Heart contour, size is normal. Pericardial effusion-thickening was not observed.", set()),
    ("Millimetric nonspecific nodules in both lungs.", {"left pulmonary nodule", "right pulmonary nodule"}),
    ("No mass or infiltrative lesion was detected in both lungs.", set()),
    ("When examined in the lung parenchyma window; emphysematous changes are observed in both lungs.", {"emphysema"}),
    ("There is a hiatal hernia at the lower end of the esophagus.", {"hiatal hernia"}),
    ("A hypodense lesion with a diameter of 15 mm was observed in the left lobe of the liver.", {"liver lesion"}),
    ("Cortical cysts are observed in both kidneys.", {"left renal cyst", "right renal cyst"}),
    ("A calculus of 5 mm is observed in the left kidney.", {"left renal stone"}),
    ("Gallbladder is distended with multiple gallstones. No wall thickening.", {"gallstones"}),
    ("Status post cholecystectomy.", set()),
    ("Left kidney is atrophic with cyst measuring 2 cm.", {"left renal cyst"}),
    ("No hydronephrosis bilaterally.", set()),
    ("No hydronephrosis or nephrolithiasis on either side.", set()),
    (
        "Kidneys enhance symmetrically. Bilateral simple renal cysts. No hydronephrosis.",
        {"left renal cyst", "right renal cyst"},
    ),
    ("Trace right and small left pleural effusions.", {"left pleural effusion", "right pleural effusion"}),
    ("Mild cardiomegaly. Small to moderate pericardial effusion.", {"cardiomegaly", "pericardial effusion"}),
    ("Mild right, severe left hydronephrosis.", {"left hydronephrosis", "right hydronephrosis"}),
    ("The previously noted right pneumothorax is no longer present.", set()),
    ("No new pulmonary nodule.", set()),
    ("Stable 6 mm left upper lobe nodule. No new nodules.", {"left pulmonary nodule"}),
    ("There is no evidence of a pleural effusion, however there is a right pneumothorax.", {"right pneumothorax"}),
    ("Resolved left pleural effusion.", set()),
    ("Left pleural effusion has nearly resolved.", {"left pleural effusion"}),
    ("Pneumothorax, if present, is tiny.", {"pneumothorax"}),
    ("No ascites. Left renal stone with no hydronephrosis.", {"left renal stone"}),
    ("Left renal stone without hydronephrosis, right renal cyst.", {"left renal stone", "right renal cyst"}),
    ("Neither kidney contains a stone.", set()),
    ("Both kidneys contain stones.", {"left renal stone", "right renal stone"}),
    ("No kidney stones. Cholelithiasis.", {"gallstones"}),
    ("The aorta measures 5.5 cm in diameter, consistent with aneurysm.", {"aortic aneurysm"}),
    ("Ectatic aorta without frank aneurysm.", set()),
    ("Compression deformities of T11 and L2.", {"vertebral fracture"}),
    ("No compression fracture.", set()),
    ("Sclerotic foci in the T5 vertebral body, suspicious for metastasis.", {"bone metastasis"}),
    ("Degenerative changes of the spine. No lytic or sclerotic lesion.", set()),
    ("Dilated small bowel loops concerning for obstruction.", {"bowel obstruction"}),
    ("Small bowel is normal in caliber. No obstruction.", set()),
    (
        "Left-sided pleural effusion is small, and right-sided pleural effusion is moderate.",
        {"left pleural effusion", "right pleural effusion"},
    ),
    ("Right pleural effusion has resolved, left pleural effusion persists.", {"left pleural effusion"}),
    ("Pleural effusions bilaterally.", {"left pleural effusion", "right pleural effusion"}),
    ("The lungs demonstrate consolidation bilaterally.", {"left consolidation", "right consolidation"}),
    ("Pleural effusion is not present, but pneumothorax is.", {"pneumothorax"}),
    ("There are neither nodules nor consolidations.", set()),
    ("A right pleural effusion is not seen; however, a left one is.", set()),
    ("Consolidation, right lower lobe.", {"right consolidation"}),
    ("right lower lobe pneumonia", {"right consolidation"}),
    ("No evidence for pneumonia.", set()),
    ("Pulmonary nodules measuring up to 8 mm are seen in the left lower lobe.", {"left pulmonary nodule"}),
    ("A 2.3 x 1.8 cm nodule is present in the right middle lobe.", {"right pulmonary nodule"}),
    ("Hypoattenuating liver consistent with hepatic steatosis. No focal hepatic lesion.", {"hepatic steatosis"}),
    ("Focal lesion in the liver is not identified.", set()),
    ("Liver lesions too small to characterize.", {"liver lesion"}),
    ("1.5 cm left lower pole renal cyst and 3 mm right upper pole stone.", {"left renal cyst", "right renal stone"}),
    ("Renal: No stones. Mild left pelvicaliectasis.", {"left hydronephrosis"}),
    ("LUNGS: Clear. PLEURA: Small left effusion.", {"left pleural effusion"}),
    ("Pericardium: Small effusion.", {"pericardial effusion"}),
    ("HEART: Enlarged.", {"cardiomegaly"}),
    ("CARDIOVASCULAR: No pericardial effusion. Moderate coronary calcifications.", {"coronary artery calcification"}),
    ("Moderate to severe emphysema.", {"emphysema"}),
    ("The left hemithorax contains a large pneumothorax.", {"left pneumothorax"}),
    ("Findings are suspicious for small bowel obstruction.", {"bowel obstruction"}),
    ("Fat containing bilateral inguinal and umbilical hernias.", {"left inguinal hernia", "right inguinal hernia"}),
    ("Tiny fat containing umbilical hernia. No inguinal hernia.", set()),
    (
        "The pleural effusion on the right has decreased, while the left pleural effusion is stable.",
        {"left pleural effusion", "right pleural effusion"},
    ),
    ("Chest tube on the left with no residual pneumothorax.", set()),
    ("Left chest tube in place, small residual pneumothorax.", {"left pneumothorax"}),
    ("No suspicious pulmonary nodules or masses, except a 4 mm nodule in the lingula.", {"left pulmonary nodule"}),
    ("No consolidation in the left lower lobe. Right lower lobe consolidation.", {"right consolidation"}),
    ("Nodule in the left lower lobe, no consolidation.", {"left pulmonary nodule"}),
    ("There is a left lower lobe nodule and no consolidation or effusion.", {"left pulmonary nodule"}),
    (
        "A small left and a moderate right pleural effusion are present.",
        {"left pleural effusion", "right pleural effusion"},
    ),
    ("No free intraperitoneal air or fluid.", set()),
    ("Perihepatic ascites.", {"ascites"}),
    ("Trace free fluid.", {"ascites"}),
    ("Hernia: none. Ascites: small.", {"ascites"}),
    ("Mild splenomegaly (14 cm).", {"splenomegaly"}),
    ("Spleen normal in size, measuring 11 cm.", set()),
    ("The patient has a history of left pneumothorax, which persists.", {"left pneumothorax"}),
    ("Follow-up of known left renal stone: stone remains unchanged.", {"left renal stone"}),
    ("Questionable 3 mm left renal stone versus vascular calcification.", {"left renal stone"}),
    ("Pneumothorax is excluded.", set()),
    ("Recommend CT to exclude pneumothorax.", set()),
    ("Absent left kidney. Right renal cyst.", {"right renal cyst"}),
    ("non-obstructing right renal calculi", {"right renal stone"}),
    ("No non-obstructing renal calculi.", set()),
    ("Nonobstructive bowel gas pattern.", set()),
    ("Right renal mass measuring 3 cm.", set()),
    ("Left adrenal nodule and left lower lobe nodule.", {"left pulmonary nodule"}),
    ("Left lower lobe nodule is adjacent to the spleen.", {"left pulmonary nodule"}),
]

MODEL_LIKE = [
    (
        "FINDINGS : lungs : small left pleural effusion . no pneumothorax . IMPRESSION : left pleural effusion .",
        {"left pleural effusion"},
    ),
    ("Findings: Lungs and pleura: There is a small left pleural effusion", {"left pleural effusion"}),
    (
        "Small left pleural effusion. Small left pleural effusion. Small left pleural effusion.",
        {"left pleural effusion"},
    ),
    (
        "Lungs and pleura: Normal lungs. No evidence of pleural effusion. Kidneys: A 12 mm cyst in the left kidney.",
        {"left renal cyst"},
    ),
    ("There is a left left pleural effusion.", {"left pleural effusion"}),
    ("No no pleural effusion.", set()),
    ("No evidence of.", set()),
    ("There is a 12 mm stone in the", set()),
    ("Kidneys: There is a 12 mm stone in the", {"renal stone"}),
    ("left", set()),
    ("The upper lobe of the left lung contains two nodules.", {"left pulmonary nodule"}),
    ("Effusion is noted in the left pleural space.", {"left pleural effusion"}),
    ("The patient has no pneumothorax. However, consolidation in the right base.", {"right consolidation"}),
    ("A moderate-sized right pleural effusion.", {"right pleural effusion"}),
    ("Left basilar consolidation and right basilar atelectasis.", {"left consolidation", "right atelectasis"}),
    (
        "There are no left-sided renal calculi; right-sided calculi are present in the lower pole of the kidney.",
        {"right renal stone"},
    ),
    ("Mild hydronephrosis on the right; none on the left.", {"right hydronephrosis"}),
    (
        "No right hydronephrosis. Mild left hydronephrosis with a 4 mm stone.",
        {"left hydronephrosis", "left renal stone"},
    ),
    ("Lungs: No focal consolidation. Pleura: No effusion or pneumothorax. Heart: Normal.", set()),
    (
        "Cysts in both kidneys, the largest in the right upper pole measuring 4 cm.",
        {"left renal cyst", "right renal cyst"},
    ),
    ("There is no evidence of aortic aneurysm or dissection.", set()),
    ("No pneumothorax on the right. Small pneumothorax on the left.", {"left pneumothorax"}),
    ("Right pleural effusion, small. Left: none.", {"right pleural effusion"}),
    ("Nodule (5 mm) in the right upper lobe (series 4, image 23).", {"right pulmonary nodule"}),
    (
        "5 mm right upper lobe nodule (series 4 image 23), 3 mm left lower lobe nodule.",
        {"left pulmonary nodule", "right pulmonary nodule"},
    ),
]


@pytest.mark.parametrize(("text", "keys"), POSITIVE)
def test_what_is_there_is_read(text, keys):
    assert finding_keys(text) == keys


@pytest.mark.parametrize("text", NEGATED)
def test_what_is_denied_is_not_read_as_there(text):
    assert finding_keys(text) == set()


@pytest.mark.parametrize("text", OTHER)
def test_history_and_foreign_organs_give_nothing(text):
    assert finding_keys(text) == set()


@pytest.mark.parametrize(("text", "keys"), REAL_LIFE)
def test_sentences_as_radiologists_write_them(text, keys):
    assert finding_keys(text) == keys


@pytest.mark.parametrize(("text", "keys"), MODEL_LIKE)
def test_text_as_a_model_writes_it(text, keys):
    assert finding_keys(text) == keys


@pytest.mark.parametrize(("text", "keys"), TRICKY)
def test_scope_and_side(text, keys):
    assert finding_keys(text) == keys


DETAILS = [
    ("Two nodules in the left upper lobe, the largest measuring 2.3 x 1.8 cm.",
     [Finding("pulmonary nodule", "left", "upper lobe", 23.0, 2)]),
    ("5-mm nodule in the RML, previously 3 mm.", [Finding("pulmonary nodule", "right", "middle lobe", 5.0)]),
    ("12 mm nodule in the left lower lobe and a 3 mm right renal stone.",
     [Finding("pulmonary nodule", "left", "lower lobe", 12.0), Finding("renal stone", "right", None, 3.0)]),
    ("1.5 cm left lower pole renal cyst and 3 mm right upper pole stone.",
     [Finding("renal stone", "right", "upper pole", 3.0), Finding("renal cyst", "left", "lower pole", 15.0)]),
    ("Spleen is enlarged, measuring 15.5 cm.", [Finding("splenomegaly", size_mm=155.0)]),
    ("Mild right, severe left hydronephrosis.",
     [Finding("hydronephrosis", "left", severity="severe"), Finding("hydronephrosis", "right", severity="mild")]),
    ("Trace left pleural effusion.", [Finding("pleural effusion", "left", severity="small")]),
    ("Left pleural effusion is large.", [Finding("pleural effusion", "left", severity="large")]),
    ("Markedly enlarged heart. The heart is moderately enlarged.", [Finding("cardiomegaly", severity="severe")]),
    ("Small bowel obstruction.", [Finding("bowel obstruction", site="small bowel")]),
    ("Three liver lesions in the right lobe, up to 30 mm.", [Finding("liver lesion", None, "right lobe", 30.0, 3)]),
    ("Bilateral renal cysts.", [Finding("renal cyst", "left"), Finding("renal cyst", "right")]),
    ("Multiple gallstones.", [Finding("gallstones", count=2)]),
    ("A 5.2 cm abdominal aortic aneurysm.", [Finding("aortic aneurysm", None, "abdominal aorta", 52.0)]),
    ("Severe T7 compression fracture.", [Finding("vertebral fracture", site="T7", severity="severe")]),
    ("12 mm nodule in the left lower lobe. 5 mm nodule in the lingula.",
     [Finding("pulmonary nodule", "left", "lower lobe", 12.0, 2)]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "findings"), DETAILS)
def test_size_site_count_and_severity(text, findings):
    assert parse_findings(text) == findings


def test_findings_and_impression_are_one_finding():
    report = "FINDINGS:\nKidneys: 12 mm cyst in the upper pole of the left kidney.\nIMPRESSION:\n1. Left renal cyst."
    assert parse_findings(report) == [Finding("renal cyst", "left", "upper pole", 12.0)]


def test_every_synonym_of_the_ontology_is_read():
    section = {"nodule": "Lungs", "effusion": "Lungs"}
    for kind in FINDINGS.values():
        for word in (kind.name, *kind.synonyms):
            text = f"{section[word]}: there is {word}." if word in section else f"There is {word}."
            assert kind.name in {finding.name for finding in parse_findings(text)}, word
            assert parse_findings(f"There is no {word}.") == [], word


def test_status_of_each_mention():
    text = "Possible left pneumothorax. No ascites. History of splenomegaly. Gallstones."
    told = [(m.finding.name, m.status) for m in parse_mentions(text)]
    assert told == [
        ("pneumothorax", "possible"),
        ("ascites", "absent"),
        ("splenomegaly", "historical"),
        ("gallstones", "present"),
    ]


def test_labels_tell_denied_from_unmentioned():
    labels = finding_labels("No pneumothorax. Left pleural effusion. No right pleural effusion.")
    assert labels == {
        "left pneumothorax": 0,
        "right pneumothorax": 0,
        "left pleural effusion": 1,
        "right pleural effusion": 0,
    }


def test_layout_does_not_matter():
    text = "FINDINGS:\nLungs: Small left pleural effusion. No nodule.\nIMPRESSION:\n1. Left pleural effusion."
    expected = parse_findings(text)
    assert expected == [Finding("pleural effusion", "left", severity="small")]
    for other in (
        text.replace("\n", " "),
        text.upper(),
        text.replace(":", " :"),
        f"**{text}**",
        text.replace("\n", "\r\n"),
    ):
        assert parse_findings(other) == expected


def test_wrapped_lines_are_one_sentence():
    assert finding_keys("There is no pleural effusion,\npneumothorax or consolidation.") == set()
    assert finding_keys("Small pleural effusion\non the left.") == {"left pleural effusion"}


WORDS = [
    *(
        "left",
        "right",
        "pleural",
        "effusion",
        "nodule",
        "no",
        "not",
        "and",
        "or",
        "in",
        "of",
        "the",
        "there",
        "is",
        "seen",
    ),
    *(
        ",",
        ".",
        ";",
        ":",
        "(",
        ")",
        "-",
        "--",
        ">",
        "~",
        "é",
        "漢",
        "\t",
        "\n",
        "12 mm",
        "5.2 cm",
        "3",
        "x",
        "two",
        "L1",
    ),
    *(
        "cyst",
        "kidney",
        "lobe",
        "upper",
        "bilateral",
        "hepatic",
        "renal",
        "stone",
        "aorta",
        "aneurysm",
        "IMPRESSION:",
        "1.",
    ),
]


def test_garbage_is_read_without_complaint_and_in_no_time():
    rng = random.Random(0)
    texts = [
        "".join(rng.choice(WORDS) + rng.choice([" ", "", " "]) for _ in range(rng.randint(0, 200))) for _ in range(300)
    ]
    texts += [
        "",
        " ",
        "." * 5000,
        "-" * 5000,
        "no " * 2000,
        "left " * 2000,
        "nodule " * 500,
        "12 x " * 2000 + "mm",
        " " * 20_000 + "[x] yes",
        "\x00",
    ]
    start = time.process_time()
    for text in texts:
        for finding in parse_findings(text):
            assert finding.key.endswith(finding.name)
    assert time.process_time() - start < 10
