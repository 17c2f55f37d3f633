"""Questions built from what is known: right by hand, balanced, answerable, and the same in every process."""

from collections import Counter
from pathlib import Path

import pytest

from vol3d.data.questions import asked_of
from vol3d.data.study import Study
from vol3d.text.facts import Fact, Facts, row_facts
from vol3d.text.ontology import KEYS
from vol3d.text.questions import KINDS, check_choices, stream, write_questions

REPORT = (
    "FINDINGS:\nLungs: Two pulmonary nodules in the left upper lobe, the largest 12 mm. Small right pleural effusion. "
    "No pneumothorax.\nKidneys: Possible renal stone in the right lower pole measuring 5 mm."
)
EFFUSION = {"left pleural effusion": 1, "right pleural effusion": 0, "pleural effusion": 1, "ascites": None}


def by_kind(facts: Facts, kind: str, **settings) -> list[dict]:
    return write_questions(facts, "s1", kinds=[kind], **settings)


def test_what_a_report_tells() -> None:
    facts = row_facts(report=REPORT)
    there = {"left pulmonary nodule", "right pleural effusion", "right renal stone"}
    assert {key for key, present in facts.present.items() if present} == there
    assert {key for key, present in facts.present.items() if not present} == {"left pneumothorax", "right pneumothorax"}
    assert "ascites" not in facts.present, "not mentioned is unknown"
    assert by_kind(facts, "count") == [
        {
            "question": "How many left pulmonary nodules are there?",
            "answer": "2",
            "kind": "count",
            "choices": ["1", "2", "3", "4 or more"],
        }
    ]
    sizes = {row["question"]: row["answer"] for row in by_kind(facts, "size") if "choices" not in row}
    assert sizes == {
        "How large is the left pulmonary nodule in mm?": "12 mm",
        "How large is the right renal stone in mm?": "5 mm",
    }
    places = {row["question"]: (row["answer"], set(row["choices"])) for row in by_kind(facts, "location")}
    assert places["Where is the right renal stone?"] == ("lower pole", {"upper pole", "mid pole", "lower pole"})
    grades = {row["question"]: row["answer"] for row in by_kind(facts, "severity")}
    assert grades["What is the extent of the right pleural effusion?"] == "small"


@pytest.mark.parametrize(
    ("report", "told"),
    [
        ("Multiple right renal cysts, the largest 30 mm.", []),
        ("Renal cysts on both sides.", []),
        ("Three right renal cysts. The renal cysts on the right are unchanged.", ["3"]),
        ("A 5 mm nodule in the right upper lobe and a 9 mm nodule in the right middle lobe.", ["2"]),
        ("Bone metastases in T12 and L3.", []),
        ("Consolidation in the left lower lobe. Consolidation in the lingula.", []),
        ("Nodule in the right lower lobe. IMPRESSION: Right nodule.", ["lower lobe"]),
    ],
)
def test_a_count_or_place_that_the_report_leaves_open_is_not_asked(report: str, told: list[str]) -> None:
    """ "Multiple" is no 2, and of two places with a nodule neither is the right one."""
    rows = write_questions(row_facts(report=report), "s1", kinds=["count", "location"])
    assert [row["answer"] for row in rows] == told


def test_labels_win_over_the_report_and_null_is_unknown() -> None:
    facts = row_facts(labels=EFFUSION, report="No pleural effusion. Large ascites.")
    assert dict(facts.present) == {"left pleural effusion": True, "right pleural effusion": False, "ascites": True}
    assert [row["answer"] for row in by_kind(facts, "side")] == ["left"]


@pytest.mark.parametrize(
    ("label", "report", "there"),
    [
        (0, "Small left pleural effusion.", {"pleural effusion": False}),
        (0, "No pleural effusion.", {"left pleural effusion": False, "right pleural effusion": False}),
        (1, "No pleural effusion.", {"pleural effusion": True}),
        (1, "Small left pleural effusion. No right effusion.",
         {"left pleural effusion": True, "right pleural effusion": False}),
        (None, "Small left pleural effusion.", {"left pleural effusion": True}),
    ],
)  # fmt: skip
def test_a_label_without_a_side_wins_over_the_sides_of_the_report(label: int | None, report: str, there: dict) -> None:
    facts = row_facts(labels={"pleural effusion": label}, report=report)
    assert facts.present == there
    assert {fact.key for fact in facts.findings} <= {key for key, present in there.items() if present}


def test_codes_speak_of_findings_without_a_side() -> None:
    facts = row_facts(codes=["R18.8", "J90"], codes_absent=["R16.1"])
    assert dict(facts.present) == {"ascites": True, "splenomegaly": False}


def test_codes_are_read_as_those_of_their_own_system() -> None:
    """571.5 and 579.2 are fatty liver and a large spleen as phecodes, cirrhosis and a blind loop in ICD-9-CM."""
    numbers = {"codes": ["571.5"], "codes_absent": ["579.2"]}
    known = {"hepatic steatosis": True, "splenomegaly": False}
    assert dict(row_facts(**numbers, code_system="phecode").present) == known
    assert dict(row_facts(**numbers, code_system="icd9cm").present) == {}
    study = Study("a", Path("a.nii.gz"), codes=["571.5"], code_system="icd9cm")
    assert asked_of(study) == []
    written = row_facts(codes=["k760", "none"], codes_absent=["R16.1"], code_system="icd10cm")
    assert dict(written.present) == known
    assert dict(row_facts(codes=["573"], code_system="phecode").present) == {}


def test_phase_and_modality_come_from_meta() -> None:
    facts = row_facts(meta={"contrast": "none", "modality": "CT"})
    assert [row["answer"] for row in write_questions(facts, "s")] == ["without contrast", "CT"]
    assert write_questions(row_facts(meta={"phase": "phase 7"}), "s") == []


def test_sides() -> None:
    both = {"left pneumothorax": True, "right pneumothorax": True, "left renal cyst": False}
    assert [row["answer"] for row in by_kind(Facts(both), "side")] == ["both"], "one unknown side: not asked"


def studies(count: int) -> list[list[dict]]:
    """Questions of studies in which each of all findings is there with a chance of 1/5."""
    rows = []
    for number in range(count):
        draw = stream(0, "labels", number)
        facts = Facts({key: draw.random() < 0.2 for key in KEYS}, [Fact("liver lesion", size_mm=10.0 + number % 40)])
        rows.append(write_questions(facts, f"s{number}"))
    return rows


def test_no_answer_can_be_guessed_from_its_frequency() -> None:
    asked = [row for rows in studies(400) for row in rows]
    answers = {kind: Counter(row["answer"] for row in asked if row["kind"] == kind) for kind in KINDS}
    assert abs(answers["presence"]["yes"] / answers["presence"].total() - 0.5) < 0.03
    assert max(answers["side"].values()) / answers["side"].total() < 0.42
    assert max(answers["which"].values()) / answers["which"].total() < 0.1
    for kind in ("which", "size"):
        closed = [row for row in asked if row["kind"] == kind and "choices" in row]
        places = Counter(row["choices"].index(row["answer"]) for row in closed)
        assert set(places) == {0, 1, 2, 3}
        assert max(places.values()) / len(closed) < 0.33, (kind, places)


def test_every_closed_question_can_be_answered() -> None:
    for number, rows in enumerate(studies(50)):
        for row in rows:
            check_choices(row, f"s{number}")
            if row["kind"] == "which":
                assert len(row["choices"]) == len(set(row["choices"])) == 4


def test_the_same_study_gets_the_same_questions_and_another_seed_others() -> None:
    facts = Facts({key: number % 4 == 0 for number, key in enumerate(KEYS)})
    assert write_questions(facts, "s1") == write_questions(facts, "s1")
    assert write_questions(facts, "s1") != write_questions(facts, "s1", seed=1)
    # Fixed by hand once: what a published manifest was asked must not change with a release.
    assert [stream(0, "a", 1).randrange(1000), stream(1, "a", 1).randrange(1000)] == [382, 78]


def test_bad_choices_and_kinds_are_refused() -> None:
    question = {"question": "Where?", "answer": "liver", "choices": ["spleen", "kidney"]}
    with pytest.raises(ValueError, match=r"study 's7'.*answer 'liver' is not among its 2 choices.*add it"):
        check_choices(question, "s7")
    with pytest.raises(ValueError, match=r"3 choices, 2 of them different"):
        check_choices({**question, "choices": ["liver", "liver", "spleen"]}, "s7")
    with pytest.raises(ValueError, match=r"kinds of question \['colour'\]"):
        write_questions(Facts(), "s", kinds=["colour"])
    with pytest.raises(ValueError, match=r"choices is 1: .* at least 2"):
        write_questions(Facts(), "s", choices=1)
