import pytest

from vol3d.phantom.report import write_report
from vol3d.text.ontology import ORGANS
from vol3d.text.parser import finding_keys
from vol3d.text.sections import (
    HEADERS,
    MERLIN_ORGANS,
    ReportSections,
    header_organ,
    header_section,
    split_organs,
    split_report,
    split_sections,
)


@pytest.mark.parametrize(
    "text",
    [
        "FINDINGS:\nThe lungs are clear.\nIMPRESSION:\nNormal.",
        "Findings: The lungs are clear. Impression: Normal.",
        "FINDINGS\nThe lungs are clear.\n\nIMPRESSION\nNormal.",
        "**Findings:** The lungs are clear.\n**Impression:** Normal.",
        "## Findings\nThe lungs are clear.\n## Conclusion\nNormal.",
        "INDICATION: Cough.\nTECHNIQUE: CT.\nCOMPARISON: None.\nFINDINGS: The lungs are clear.\nOPINION: Normal.",
        "The lungs are clear.\nImpression:\nNormal.",
        "Clinical history: Effusion.\nReport:\nThe lungs are clear.\nSummary:\nNormal.",
    ],
)
def test_findings_and_impression_by_header(text):
    assert split_report(text) == ReportSections("The lungs are clear.", "Normal.")


def test_what_is_missing_is_empty():
    assert split_report("The lungs are clear.") == ReportSections("The lungs are clear.", "")
    assert split_report("IMPRESSION: Normal.") == ReportSections("", "Normal.")
    assert split_report("") == ReportSections("", "")


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("FINDINGS/IMPRESSION", "findings"),
        ("Findings and Impression", "findings"),
        ("CT CHEST FINDINGS", "findings"),
        ("CT Abdomen & Pelvis with contrast - Findings", "findings"),
        ("Findings (chest)", "findings"),
        ("TECHNIQUE AND FINDINGS", "findings"),
        ("IMPRESSION AND RECOMMENDATIONS", "impression"),
        ("CT chest impression", "impression"),
        ("History/Indication", "other"),
        ("CT technique", "other"),
        ("CT chest with contrast", None),
        ("The above findings", None),
        ("No prior comparison", None),
    ],
)
def test_headers_are_told_by_their_words(header, part):
    assert header_section(header) == part


BODY = "Small left pleural effusion."


@pytest.mark.parametrize(
    "end",
    [
        f"FINDINGS/IMPRESSION: {BODY}",
        f"Findings and impression:\n{BODY}",
        f"**CT CHEST FINDINGS:** {BODY}",
        f"\n{BODY}",
        f"\nIMPRESSION: {BODY}",
    ],
)
def test_history_technique_and_comparison_end_where_the_body_begins(end):
    for start in ("HISTORY:\n\nAscites.\n", "EXAM: CT\nTECHNIQUE: Axial images.\nCOMPARISON: None, ascites.\n"):
        parts = split_report(start + end)
        assert {parts.findings, parts.impression} - {""} == {BODY}
        assert finding_keys(start + end) == {"left pleural effusion"}


@pytest.mark.parametrize("header", ["ABDOMEN AND PELVIS", "CT CHEST", "LUNGS", "Retroperitoneal structures"])
def test_a_header_of_an_organ_or_of_its_own_line_ends_what_stands_before_the_findings(header):
    text = f"TECHNIQUE: x.\nCOMPARISON: None, ascites.\n{header}: {BODY}"
    assert split_report(text) == ReportSections(f"{header}: {BODY}", "")
    assert finding_keys(text) == {"left pleural effusion"}
    assert split_report(text.replace("\n", "\r\n")) == split_report(text)


def test_history_runs_on_to_the_findings_where_they_have_a_header():
    text = (
        "HISTORY: Cough.\n\nKnown ascites.\nSmoking status: former, gallstones.\nCOMPARISON:\nCT chest: splenomegaly.\n"
        f"FINDINGS:\n{BODY}\n\nCalm.\nRECOMMENDATION: CT.\n\nCall us for ascites."
    )
    assert split_report(text) == ReportSections(f"{BODY}\n\nCalm.", "")
    assert finding_keys(text) == {"left pleural effusion"}


def test_words_in_a_sentence_are_no_header():
    text = "FINDINGS: The findings are normal. No impression: the summary follows below."
    assert split_report(text).findings == text.removeprefix("FINDINGS: ")
    assert split_organs("The liver: is normal") == {}


def test_organs_by_many_headers():
    text = """
    LOWER CHEST: Clear bases.
    Hepatobiliary - Normal liver.
    Gallbladder and biliary tree: No stones.
    1. SPLEEN: Normal.
    Pancreas
    Normal pancreas.
    **Adrenals:** Normal adrenals.
    Kidneys, ureters and bladder: No hydronephrosis.
    GI tract: Normal bowel.
    Peritoneal cavity: No ascites.
    Reproductive organs: Normal uterus.
    Vasculature: Normal aorta.
    Lymphatics: No adenopathy.
    Bones and soft tissues: No fracture.
    """
    organs = split_organs(text)
    assert list(organs) == list(MERLIN_ORGANS)
    assert organs["lower thorax"] == "Clear bases."
    assert organs["pancreas"] == "Normal pancreas."
    assert organs["kidneys"] == "No hydronephrosis."
    assert organs["musculoskeletal"] == "No fracture."


def test_two_headers_of_one_organ_are_joined():
    text = "Right kidney: 4 mm stone.\nLeft kidney: Normal.\nBladder: Normal bladder."
    assert split_organs(text) == {"kidneys": "4 mm stone.\nNormal.", "pelvic": "Normal bladder."}


def test_inline_headers_are_found_after_a_full_stop():
    assert split_organs("Liver: Normal. Spleen: Enlarged.") == {"liver": "Normal.", "spleen": "Enlarged."}


def test_every_alias_is_lower_case_and_leads_to_a_section_of_ours():
    for alias, organ in HEADERS.items():
        assert alias == alias.lower()
        assert organ in MERLIN_ORGANS
        assert header_organ(alias.upper() + ":") in ORGANS
        assert header_section(alias) is None
    assert header_organ("weather") is None
    assert header_section("Impression :") == "impression"
    assert header_section("TECHNIQUE") == "other"


def test_our_own_report_splits_into_its_organs():
    report = write_report([], seed=0)
    parts = split_sections(report.text)
    assert parts["findings"] == report.findings
    assert parts["impression"] == report.impression
    organs = [parts[organ] for organ in MERLIN_ORGANS if organ in parts]
    assert sorted(organs) == sorted(report.sections.values())
    assert parts["kidneys"] == report.sections["Kidneys"]
    assert parts["circulatory"] == report.sections["Heart and vessels"]
