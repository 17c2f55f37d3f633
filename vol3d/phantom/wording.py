"""The sentences of phantom reports: several wordings for each finding, its absence, and a normal organ.

A wording is a sentence with slots. A part in square brackets is left out when its slot is empty:
"a [{severity} ][{side} ]pleural effusion" gives "a left pleural effusion" when no severity is known.
Slots: severity, adverb ("mildly"), side, size ("12 mm"), count ("two"), site, place ("left upper lobe",
"upper pole of the left kidney"). The words are kept few on purpose: a small decoder learns them in minutes.

Every wording must be read back by `vol3d.text.parser` to exactly the finding it was written from; a test does that
for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wording:
    """How one kind of finding is told.

    Args:
        one: Sentences for a single finding.
        impression: Short phrase for the impression.
        absent: What follows "no", plural or singular as it is said.
        many: Sentences for a count above one.
        many_impression: Short phrase for a count above one.
        both: Sentences for the same finding on both sides.
        both_impression: Short phrase for both sides.
    """

    one: tuple[str, ...]
    impression: str
    absent: str
    many: tuple[str, ...] = ()
    many_impression: str = ""
    both: tuple[str, ...] = ()
    both_impression: str = ""


WORDINGS: dict[str, Wording] = {
    "pleural effusion": Wording(
        one=(
            "There is a [{severity} ][{side} ]pleural effusion.",
            "a [{severity} ][{side} ]pleural effusion is seen.",
            "[{severity} ][{side}-sided ]pleural effusion.",
            "[{severity} ]pleural effusion[ on the {side}].",
        ),
        both=(
            "There are [{severity} ]bilateral pleural effusions.",
            "[{severity} ]bilateral pleural effusions are seen.",
            "[{severity} ]pleural effusions on both sides.",
        ),
        impression="[{severity} ][{side} ]pleural effusion",
        both_impression="[{severity} ]bilateral pleural effusions",
        absent="pleural effusion",
    ),
    "pneumothorax": Wording(
        one=(
            "There is a [{severity} ][{side} ]pneumothorax.",
            "a [{severity} ][{side} ]pneumothorax is seen.",
            "[{severity} ][{side}-sided ]pneumothorax.",
            "[{severity} ]pneumothorax[ on the {side}].",
        ),
        both=(
            "There are [{severity} ]bilateral pneumothoraces.",
            "[{severity} ]bilateral pneumothoraces are seen.",
            "[{severity} ]pneumothorax on both sides.",
        ),
        impression="[{severity} ][{side} ]pneumothorax",
        both_impression="[{severity} ]bilateral pneumothoraces",
        absent="pneumothorax",
    ),
    "pulmonary nodule": Wording(
        one=(
            "There is a [{size} ]nodule in the {place}.",
            "a [{size} ]pulmonary nodule is seen in the {place}.",
            "Nodule in the {place}[ measuring {size}].",
            "The {place} contains a [{size} ]nodule.",
        ),
        many=(
            "There are {count} nodules in the {place}[ up to {size}].",
            "{count} pulmonary nodules are seen in the {place}[, the largest {size}].",
            "{count} nodules in the {place}[ measuring up to {size}].",
            "The {place} contains {count} nodules[ up to {size}].",
        ),
        both=(
            "There is a [{size} ]nodule in both lungs.",
            "bilateral pulmonary nodules[ measuring {size}].",
        ),
        impression="[{side} ]pulmonary nodule",
        many_impression="{count} [{side} ]pulmonary nodules",
        both_impression="bilateral pulmonary nodules",
        absent="pulmonary nodule",
    ),
    "consolidation": Wording(
        one=(
            "There is consolidation in the {place}.",
            "Consolidation is seen in the {place}.",
            "Airspace consolidation in the {place}.",
            "The {place} shows consolidation.",
        ),
        both=("There is bilateral consolidation.", "Consolidation is seen in both lungs."),
        impression="[{side} ]consolidation",
        both_impression="bilateral consolidation",
        absent="consolidation",
    ),
    "emphysema": Wording(
        one=(
            "There is [{severity} ]emphysema.",
            "[{severity} ]emphysema is seen.",
            "[{severity} ]emphysematous changes in the lungs.",
            "The lungs show [{severity} ]emphysema.",
        ),
        impression="[{severity} ]emphysema",
        absent="emphysema",
    ),
    "atelectasis": Wording(
        one=(
            "There is atelectasis in the {place}.",
            "Atelectasis is seen in the {place}.",
            "Atelectatic changes in the {place}.",
            "The {place} shows atelectasis.",
        ),
        both=("There is bilateral atelectasis.", "Atelectasis is seen in both lungs."),
        impression="[{side} ]atelectasis",
        both_impression="bilateral atelectasis",
        absent="atelectasis",
    ),
    "cardiomegaly": Wording(
        one=(
            "There is [{severity} ]cardiomegaly.",
            "The heart is [{adverb} ]enlarged.",
            "[{severity} ]enlargement of the heart.",
            "[{severity} ]cardiomegaly is seen.",
        ),
        impression="[{severity} ]cardiomegaly",
        absent="cardiomegaly",
    ),
    "pericardial effusion": Wording(
        one=(
            "There is a [{severity} ]pericardial effusion.",
            "a [{severity} ]pericardial effusion is seen.",
            "[{severity} ]pericardial effusion.",
            "[{severity} ]fluid in the pericardium.",
        ),
        impression="[{severity} ]pericardial effusion",
        absent="pericardial effusion",
    ),
    "coronary artery calcification": Wording(
        one=(
            "There is [{severity} ]coronary artery calcification.",
            "[{severity} ]calcification of the coronary arteries.",
            "The coronary arteries are [{adverb} ]calcified.",
            "[{severity} ]coronary artery calcification is seen.",
        ),
        impression="[{severity} ]coronary artery calcification",
        absent="coronary artery calcification",
    ),
    "aortic aneurysm": Wording(
        one=(
            "There is an aneurysm of the {place}[ measuring {size}].",
            "Aneurysm of the {place}[, {size}].",
            "The {place} is aneurysmal[, measuring {size}].",
            "a [{size} ]aneurysm of the {place} is seen.",
        ),
        impression="[{size} ]aortic aneurysm",
        absent="aortic aneurysm",
    ),
    "hepatic steatosis": Wording(
        one=(
            "There is [{severity} ]hepatic steatosis.",
            "The liver shows [{severity} ]steatosis.",
            "[{severity} ]fatty infiltration of the liver.",
            "[{severity} ]hepatic steatosis is seen.",
        ),
        impression="[{severity} ]hepatic steatosis",
        absent="steatosis",
    ),
    "liver lesion": Wording(
        one=(
            "There is a [{size} ]lesion in the {place}.",
            "a [{size} ]liver lesion is seen[ in the {site}].",
            "[{size} ]liver lesion[ in the {site}].",
            "The {place} contains a [{size} ]lesion.",
        ),
        many=(
            "There are {count} lesions in the {place}[ up to {size}].",
            "{count} liver lesions are seen[ in the {site}][, the largest {size}].",
            "{count} lesions in the {place}[ measuring up to {size}].",
            "The {place} contains {count} lesions[ up to {size}].",
        ),
        impression="liver lesion",
        many_impression="{count} liver lesions",
        absent="liver lesion",
    ),
    "hepatic cyst": Wording(
        one=(
            "There is a [{size} ]cyst in the {place}.",
            "a [{size} ]hepatic cyst is seen[ in the {site}].",
            "[{size} ]hepatic cyst[ in the {site}].",
            "The {place} contains a [{size} ]cyst.",
        ),
        many=(
            "There are {count} cysts in the {place}[ up to {size}].",
            "{count} hepatic cysts are seen[ in the {site}][, the largest {size}].",
            "{count} hepatic cysts[ in the {site}][ measuring up to {size}].",
            "The {place} contains {count} cysts[ up to {size}].",
        ),
        impression="hepatic cyst",
        many_impression="{count} hepatic cysts",
        absent="hepatic cyst",
    ),
    "gallstones": Wording(
        one=(
            "There is a [{size} ]gallstone.",
            "a [{size} ]gallstone is seen.",
            "The gallbladder contains a [{size} ]stone.",
            "[{size} ]stone in the gallbladder.",
        ),
        many=(
            "There are {count} gallstones[ up to {size}].",
            "{count} gallstones are seen[, the largest {size}].",
            "The gallbladder contains {count} stones[ up to {size}].",
            "{count} stones in the gallbladder[ measuring up to {size}].",
        ),
        impression="cholelithiasis",
        many_impression="cholelithiasis",
        absent="gallstone",
    ),
    "splenomegaly": Wording(
        one=(
            "There is splenomegaly[, measuring {size}].",
            "The spleen is enlarged[, measuring {size}].",
            "Enlarged spleen[ measuring {size}].",
            "Splenomegaly is seen[, {size}].",
        ),
        impression="splenomegaly",
        absent="splenomegaly",
    ),
    "renal stone": Wording(
        one=(
            "There is a [{size} ]stone in the {place}.",
            "a [{size} ][{side} ]renal stone is seen[ in the {site}].",
            "[{size} ]stone in the {place}.",
            "The {place} contains a [{size} ]stone.",
        ),
        many=(
            "There are {count} stones in the {place}[ up to {size}].",
            "{count} [{side} ]renal stones are seen[ in the {site}][, the largest {size}].",
            "{count} stones in the {place}[ measuring up to {size}].",
            "The {place} contains {count} stones[ up to {size}].",
        ),
        both=("There is a [{size} ]stone in both kidneys.", "bilateral renal stones[ measuring {size}]."),
        impression="[{side} ]renal stone",
        many_impression="{count} [{side} ]renal stones",
        both_impression="bilateral renal stones",
        absent="renal stone",
    ),
    "hydronephrosis": Wording(
        one=(
            "There is [{severity} ][{side} ]hydronephrosis.",
            "[{severity} ][{side}-sided ]hydronephrosis is seen.",
            "[{severity} ]hydronephrosis of the {place}.",
            "The {place} shows [{severity} ]hydronephrosis.",
        ),
        both=("There is [{severity} ]bilateral hydronephrosis.", "[{severity} ]hydronephrosis of both kidneys."),
        impression="[{severity} ][{side} ]hydronephrosis",
        both_impression="[{severity} ]bilateral hydronephrosis",
        absent="hydronephrosis",
    ),
    "renal cyst": Wording(
        one=(
            "There is a [{size} ]cyst in the {place}.",
            "a [{size} ][{side} ]renal cyst is seen[ in the {site}].",
            "[{size} ]cyst in the {place}.",
            "The {place} contains a [{size} ]cyst.",
        ),
        many=(
            "There are {count} cysts in the {place}[ up to {size}].",
            "{count} [{side} ]renal cysts are seen[ in the {site}][, the largest {size}].",
            "{count} cysts in the {place}[ measuring up to {size}].",
            "The {place} contains {count} cysts[ up to {size}].",
        ),
        both=("There is a [{size} ]cyst in both kidneys.", "bilateral renal cysts[ measuring {size}]."),
        impression="[{side} ]renal cyst",
        many_impression="{count} [{side} ]renal cysts",
        both_impression="bilateral renal cysts",
        absent="renal cyst",
    ),
    "ascites": Wording(
        one=(
            "There is [{severity} ]ascites.",
            "[{severity} ]ascites is seen.",
            "There is [{severity} ]free fluid in the abdomen.",
            "[{severity} ]volume ascites.",
        ),
        impression="[{severity} ]ascites",
        absent="ascites",
    ),
    "bowel obstruction": Wording(
        one=(
            "There is {site} obstruction.",
            "{site} obstruction is seen.",
            "Dilated loops in keeping with {site} obstruction.",
            "Findings of {site} obstruction.",
        ),
        impression="{site} obstruction",
        absent="bowel obstruction",
    ),
    "inguinal hernia": Wording(
        one=(
            "There is a [{severity} ][{side} ]inguinal hernia.",
            "a [{severity} ][{side} ]inguinal hernia is seen.",
            "[{severity} ][{side}-sided ]inguinal hernia.",
            "[{severity} ]inguinal hernia[ on the {side}].",
        ),
        both=(
            "There are [{severity} ]bilateral inguinal hernias.",
            "[{severity} ]inguinal hernias on both sides.",
        ),
        impression="[{severity} ][{side} ]inguinal hernia",
        both_impression="[{severity} ]bilateral inguinal hernias",
        absent="inguinal hernia",
    ),
    "hiatal hernia": Wording(
        one=(
            "There is a [{severity} ]hiatal hernia.",
            "a [{severity} ]hiatal hernia is seen.",
            "[{severity} ]hiatal hernia.",
            "[{severity} ]sliding hiatal hernia.",
        ),
        impression="[{severity} ]hiatal hernia",
        absent="hiatal hernia",
    ),
    "vertebral fracture": Wording(
        one=(
            "There is a [{severity} ]compression fracture of {place}.",
            "a [{severity} ]compression fracture of {place} is seen.",
            "[{severity} ]fracture of {place}.",
            "[{severity} ]compression deformity of {place}.",
        ),
        impression="[{severity} ][{site} ]vertebral fracture",
        absent="vertebral fracture",
    ),
    "bone metastasis": Wording(
        one=(
            "There is a [{size} ]bone metastasis[ in {place}].",
            "a [{size} ]bone lesion is seen[ in {place}], in keeping with metastasis.",
            "[{size} ]bone metastasis[ in {place}].",
            "a [{size} ]osseous metastasis is seen[ in {place}].",
        ),
        many=(
            "There are {count} bone metastases[ in {place}][ up to {size}].",
            "{count} bone metastases are seen[ in {place}][, the largest {size}].",
            "{count} osseous metastases[ in {place}][ measuring up to {size}].",
        ),
        impression="bone metastasis",
        many_impression="{count} bone metastases",
        absent="bone metastasis",
    ),
}

NORMAL: dict[str, tuple[str, ...]] = {
    "Lungs and pleura": ("The lungs are clear.", "Lungs are clear.", "Normal lungs."),
    "Heart and vessels": ("The heart is normal in size.", "Normal heart and aorta.", "Heart and aorta are normal."),
    "Liver and gallbladder": ("The liver is unremarkable.", "Normal liver and gallbladder.", "Normal liver."),
    "Spleen and pancreas": ("The spleen is normal.", "Normal spleen and pancreas.", "Unremarkable."),
    "Kidneys": ("The kidneys are normal.", "Normal kidneys.", "Unremarkable."),
    "Bowel and peritoneum": ("The bowel is normal.", "Normal bowel.", "Unremarkable."),
    "Bones": ("The bones are intact.", "Unremarkable.", "Normal bones."),
}

ABSENT = ("No {names}.", "There is no {names}.", "No evidence of {names}.", "No {names} identified.")

NO_FINDINGS = ("No acute findings.", "No significant abnormality.", "Normal study.", "No abnormal findings.")

COUNTS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
