"""Whether a finding is there today: where the past, "no longer" and a denied list end."""

import pytest

from vol3d.text.parser import parse_mentions

HISTORY = [
    ("Status post thoracentesis with a small right pneumothorax.", ["present"]),
    ("Status post left lower lobectomy with moderate left pleural effusion.", ["present"]),
    ("Status post left lower lobectomy, moderate left pleural effusion.", ["present"]),
    ("Patient with history of cirrhosis with large ascites.", ["present"]),
    ("Patient with history of cirrhosis, large ascites.", ["present"]),
    ("s/p CABG with extensive coronary artery calcifications.", ["present"]),
    ("Prior CABG and cardiomegaly.", ["present"]),
    ("History of emphysema, there is a left pneumothorax.", ["historical", "present"]),
    ("Status post right nephrectomy, the left kidney has a 5 mm stone.", ["present"]),
    ("Status post drainage of left pleural effusion with small left pneumothorax.", ["historical", "present"]),
    ("Status post cholecystectomy for gallstones.", ["historical"]),
    ("History of pneumothorax, effusion and ascites.", ["historical"] * 3),
    ("Prior CT showed a left pleural effusion with atelectasis.", ["historical"] * 2),
    ("Evaluate for pneumonia with effusion.", ["historical"] * 2),
    ("Status post repair of left inguinal hernia.", ["historical"]),
]

NO_LONGER = [
    ("There is no longer a left pneumothorax.", ["absent"]),
    ("There are no longer any gallstones.", ["absent"]),
    ("There is no longer evidence of right pleural effusion.", ["absent"]),
    ("No longer seen is the left pleural effusion.", ["absent"]),
    ("The left kidney no longer contains a stone.", ["absent"]),
    ("Left effusion persists and there is no longer a pneumothorax.", ["present", "absent"]),
    ("Pneumothorax is no longer present, small left effusion.", ["absent", "present"]),
    ("There is no longer a pneumothorax, with a small left pleural effusion.", ["absent", "present"]),
]

LISTS = [
    ("No pleural effusion, 6 mm nodule in the left lower lobe, infectious or inflammatory.", ["absent", "present"]),
    ("No pneumothorax, 5 mm nodule in the right upper or middle lobe.", ["absent", "present"]),
    ("No pneumothorax, small left effusion or atelectasis.", ["absent", "present", "present"]),
    ("No nodule, moderate emphysema in the upper or middle lobes.", ["absent", "present"]),
    ("No hydronephrosis, 3 mm stone in the left kidney, obstructing or not.", ["absent", "present"]),
    ("No pneumothorax, new consolidation or effusion.", ["absent"] * 3),
    ("No pleural effusion, large mass or adenopathy.", ["absent"] * 2),
    ("No pleural effusion, large nodule, or pneumothorax.", ["absent"] * 3),
    ("No effusion, 5 mm or larger nodule, or consolidation.", ["absent"] * 3),
]


@pytest.mark.parametrize(("text", "statuses"), HISTORY)
def test_the_past_ends_where_the_sentence_comes_to_today(text, statuses):
    assert [mention.status for mention in parse_mentions(text)] == statuses


@pytest.mark.parametrize(("text", "statuses"), NO_LONGER)
def test_no_longer_denies_what_it_stands_before_or_behind(text, statuses):
    assert [mention.status for mention in parse_mentions(text)] == statuses


@pytest.mark.parametrize(("text", "statuses"), LISTS)
def test_a_denied_list_ends_at_a_measured_item_and_goes_on_to_its_or(text, statuses):
    assert [mention.status for mention in parse_mentions(text)] == statuses
