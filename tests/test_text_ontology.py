import subprocess
import sys

import pytest

from vol3d.text.ontology import FINDINGS, KEYS, ORGANS, Finding, in_report_order


def test_every_finding_is_complete_and_stands_in_report_order():
    assert len(FINDINGS) >= 22
    assert len(KEYS) == len(set(KEYS)) == len(FINDINGS) + sum(kind.sided for kind in FINDINGS.values())
    organs = [ORGANS.index(kind.organ) for kind in FINDINGS.values()]
    assert organs == sorted(organs)
    for name, kind in FINDINGS.items():
        assert kind.name == name == name.lower()
        assert kind.icd10cm
        assert kind.phecode
        assert kind.synonyms


def test_no_synonym_names_two_findings():
    words = [word for kind in FINDINGS.values() for word in (kind.name, *kind.synonyms)]
    assert len(words) == len(set(words))


def test_key_is_side_and_name():
    assert Finding("pleural effusion", "left").key == "left pleural effusion"
    assert Finding("pleural effusion").key == "pleural effusion"
    assert Finding("ascites").key == "ascites"
    assert Finding("ascites").type.organ == "Bowel and peritoneum"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "dragon"}, "unknown finding 'dragon'; known: pleural effusion"),
        ({"name": "ascites", "side": "left"}, "ascites has no side, got side='left'"),
        ({"name": "pulmonary nodule", "side": "left", "site": "middle lobe"}, "on the right, got side='left'"),
        ({"name": "pulmonary nodule", "side": "right", "site": "lingula"}, "on the left, got side='right'"),
        ({"name": "renal cyst", "site": "upper lobe"}, "'upper lobe': use one of upper pole, mid pole, lower pole"),
        ({"name": "ascites", "site": "pelvis"}, "ascites has no site, got site='pelvis'"),
        ({"name": "ascites", "severity": "severe"}, "'severe': use one of small, moderate, large"),
        ({"name": "ascites", "size_mm": 12.0}, "ascites is not measured, got size_mm=12.0"),
        ({"name": "renal cyst", "size_mm": -1.0}, "size_mm of renal cyst is -1.0: give millimetres between 0 and 1000"),
        ({"name": "ascites", "count": 2}, "count of ascites is 2: give 1, it is not counted"),
        ({"name": "renal cyst", "count": 0}, "count of renal cyst is 0: give 1 or more"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Finding(**arguments)


def test_report_order_is_organ_then_left_before_right():
    findings = [Finding("renal cyst", "right"), Finding("ascites"), Finding("renal cyst", "left"), Finding("emphysema")]
    keys = [finding.key for finding in in_report_order(findings)]
    assert keys == ["emphysema", "left renal cyst", "right renal cyst", "ascites"]


def test_text_needs_neither_torch_nor_monai():
    modules = "vol3d.text.parser, vol3d.text.codes, vol3d.text.lexicon, vol3d.text.sections, vol3d.phantom.report"
    code = f"import sys, {modules}; print([m for m in ('torch', 'monai', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
