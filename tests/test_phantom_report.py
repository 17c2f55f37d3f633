import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from finding_samples import random_findings

from vol3d.phantom.report import ask_questions, write_report
from vol3d.phantom.wording import ABSENT, NO_FINDINGS, NORMAL, WORDINGS
from vol3d.text.lexicon import swap_finding
from vol3d.text.ontology import FINDINGS, ORGANS, Finding, in_report_order
from vol3d.text.parser import parse_findings
from vol3d.text.sections import split_report

SUBSET = ("pleural effusion", "pneumothorax", "cardiomegaly", "renal cyst", "renal stone", "ascites", "gallstones")


ROUND_TRIP = """
import random
from finding_samples import random_findings
from vol3d.phantom.report import write_report
from vol3d.text.ontology import FINDINGS, in_report_order
from vol3d.text.parser import parse_findings

rng = random.Random(0)
told = 0
for seed in range(2400):
    chance = rng.choice([0.05, 0.1, 0.2, 0.4])
    findings = random_findings(rng, chance)
    text = write_report(findings, seed=seed).text
    assert parse_findings(text) == in_report_order(findings), text
    told += len(findings)
for name in FINDINGS:
    wordings = set()
    for seed in range(60):
        findings = random_findings(rng, 0.7, [name])
        text = write_report(findings, seed=seed, subset=[name]).findings
        assert parse_findings(text) == in_report_order(findings), text
print(told)
"""


@pytest.mark.slow
def test_parser_recovers_every_finding_of_thousands_of_reports():
    # In a process of its own: with every call type-checked, as in this one, it would take minutes.
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    run = [sys.executable, "-c", ROUND_TRIP]
    done = subprocess.run(run, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 10_000


def test_parser_recovers_reports_with_types_checked():
    rng = random.Random(0)
    for seed in range(25):
        findings = random_findings(rng, 0.2)
        report = write_report(findings, seed=seed)
        assert parse_findings(report.text) == in_report_order(findings), report.text


def test_there_are_several_wordings_of_everything():
    assert set(WORDINGS) == set(FINDINGS)
    assert set(NORMAL) == set(ORGANS)
    for name, wording in WORDINGS.items():
        assert len(set(wording.one)) >= 4, name
        assert len(set(wording.many)) >= 3 or not FINDINGS[name].countable, name
        assert len(set(wording.both)) >= 2 or not FINDINGS[name].sided, name
    assert len(ABSENT) >= 4
    assert len(NO_FINDINGS) >= 4


def test_no_wording_says_more_of_a_metastasis_than_is_drawn():
    """It is drawn lytic or sclerotic, and the words are chosen without knowing which."""
    wording = WORDINGS["bone metastasis"]
    assert not [text for text in (*wording.one, *wording.many) if "lytic" in text or "sclerotic" in text]


def test_a_normal_study_has_no_finding():
    for seed in range(30):
        report = write_report([], seed=seed)
        assert parse_findings(report.text) == []
        assert report.impression in NO_FINDINGS
        assert list(report.sections) == list(ORGANS)


def test_length_is_what_a_small_decoder_can_learn():
    rng = random.Random(2)
    lengths = [len(write_report(random_findings(rng, 0.1), seed=seed).text.split()) for seed in range(40)]
    assert 60 <= sum(lengths) / len(lengths) <= 130


def test_report_has_its_parts():
    report = write_report([Finding("renal cyst", "left", size_mm=12.0)], seed=4, age=63, sex="F", contrast=True)
    assert report.text == f"FINDINGS:\n{report.findings}\nIMPRESSION:\n{report.impression}"
    assert (split_report(report.text).findings, split_report(report.text).impression) == (
        report.findings,
        report.impression,
    )
    assert report.findings == "\n".join(f"{organ}: {text}" for organ, text in report.sections.items())
    assert report.impression == "Left renal cyst."
    assert report.exam == "CT of the chest, abdomen and pelvis with intravenous contrast in a 63-year-old woman."
    assert "63" not in report.text


def test_same_seed_same_report_whatever_the_order():
    findings = random_findings(random.Random(5), 0.3)
    report = write_report(findings, seed=7)
    assert write_report(findings[::-1], seed=7) == report
    assert len({write_report(findings, seed=seed).text for seed in range(20)}) > 15


TWINNED = (
    "pleural effusion",
    "pulmonary nodule",
    "splenomegaly",
    "renal stone",
    "hydronephrosis",
    "renal cyst",
    "ascites",
)


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) (?=[A-Z0-9])|\n", text)


@pytest.mark.parametrize("change", ["remove", "swap", "resize"])
def test_a_twin_differs_only_in_what_was_changed(change):
    rng = random.Random(6)
    seen = 0
    for seed in range(60):
        findings = random_findings(rng, 0.15, TWINNED)
        index = rng.randrange(len(findings)) if findings else 0
        usable = [f for f in findings if sum(g.name == f.name for g in findings) == 1]
        if change == "swap":
            usable = [f for f in usable if f.side]
        if change == "resize":
            usable = [f for f in usable if f.size_mm]
        if not usable:
            continue
        seen += 1
        old = usable[index % len(usable)]
        new = None if change == "remove" else swap_finding(old)
        if change == "resize":
            new = replace(old, size_mm=(old.size_mm or 0) + 100)
        twin = [f for f in findings if f is not old] + ([new] if new else [])
        before, after = (write_report(f, seed=seed, subset=TWINNED) for f in (findings, twin))
        for organ in before.sections:
            if organ != old.type.organ:
                assert before.sections[organ] == after.sections[organ]
        kept = [s for s in _sentences(before.sections[old.type.organ]) if parse_findings(f"{old.type.organ}: {s}")]
        for sentence in kept:
            if old not in parse_findings(f"{old.type.organ}: {sentence}"):
                assert sentence in after.sections[old.type.organ]
        assert parse_findings(after.text) == in_report_order(twin)
    assert seen > 30


def test_swapping_a_side_changes_only_the_side_word():
    effusion = Finding("pleural effusion", "left", severity="small")
    for seed in range(20):
        left = write_report([effusion], seed=seed, subset=SUBSET).text
        right = write_report([swap_finding(effusion)], seed=seed, subset=SUBSET).text
        assert left.replace("left", "right").replace("Left", "Right") == right


def test_subset_decides_what_is_denied_and_which_organs_are_told():
    for seed in range(10):
        text = write_report([Finding("ascites")], seed=seed, subset=SUBSET).text.lower()
        assert "spleen" not in text
        assert "bones" not in text
        for name in set(FINDINGS) - set(SUBSET):
            assert WORDINGS[name].absent not in text.replace("pleural effusion", "")


def test_pairs_alike_are_sometimes_told_as_one():
    pair = [Finding("pleural effusion", side, severity="large") for side in ("left", "right")]
    told = [write_report(pair, seed=seed).sections[ORGANS[0]] for seed in range(40)]
    assert 8 < sum("bilateral" in text or "both" in text for text in told) < 36


@pytest.mark.parametrize(
    ("findings", "subset", "message"),
    [
        ([Finding("ascites"), Finding("ascites")], None, "ascites is given 2 times: give it once, with count=2"),
        ([Finding("renal cyst")], None, "renal cyst has no side"),
        ([Finding("ascites")], ["renal cyst"], r"ascites is not in the subset \(renal cyst\)"),
        ([], ["dragon"], "unknown findings dragon; known: pleural effusion"),
        ([Finding("gallstones", count=12)], None, "gallstones has count 12: a report counts up to 9"),
    ],
)
def test_what_cannot_be_written_is_refused(findings, subset, message):
    with pytest.raises(ValueError, match=message):
        write_report(findings, seed=0, subset=subset)


def test_questions_are_answered_by_the_findings():
    rng = random.Random(8)
    kinds: dict[str, int] = {}
    for seed in range(20):
        findings = random_findings(rng, 0.2)
        present = {f.key: f for f in findings}
        for row in ask_questions(findings, seed=seed):
            kinds[row["kind"]] = kinds.get(row["kind"], 0) + 1
            assert row["answer"] in row.get("choices", [row["answer"]])
            finding = present.get(row["finding"])
            if row["kind"] == "presence":
                assert row["answer"] == ("yes" if finding else "no")
            elif row["kind"] == "side":
                sides = {f.side for f in findings if f.name == row["finding"]}
                assert row["answer"] == ("both" if len(sides) == 2 else sides.pop())
            elif row["kind"] == "count":
                assert finding is not None
                assert row["answer"] == (str(finding.count) if finding.count < 4 else "4 or more")
            elif "choices" not in row:
                assert finding is not None
                assert row["answer"] == f"{finding.size_mm:.0f} mm"
    assert set(kinds) == {"presence", "side", "count", "size"}


def test_absent_findings_are_asked_about_too():
    rows = write_report([], seed=1).questions
    assert rows
    assert {row["answer"] for row in rows} == {"no"}
