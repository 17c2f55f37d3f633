import pytest

from vol3d.text.codes import PHECODES, finding_code, is_icd10cm, normalize_icd10cm, phecode, study_codes
from vol3d.text.ontology import FINDINGS, Finding


@pytest.mark.parametrize("code", ["J90", "K76.0", "M48.50XA", "R91.1", "C7A.00", "S22.000A"])
def test_shape_of_a_code(code):
    assert is_icd10cm(code)
    assert normalize_icd10cm(code.replace(".", "").lower()) == code


@pytest.mark.parametrize("code", ["", "J9", "90J", "K76.", "K76.00000", "K760", "k76.0", "507"])
def test_what_is_no_code(code):
    assert not is_icd10cm(code)


def test_all_our_codes_are_well_formed_and_mapped():
    for kind in FINDINGS.values():
        assert is_icd10cm(kind.icd10cm)
        assert phecode(kind.icd10cm) == kind.phecode
        if kind.icd10cm_many:
            assert phecode(kind.icd10cm_many)


@pytest.mark.parametrize(("icd", "phe"), [("J90", "507"), ("n200", "594.1"), ("K76.0", "571.5"), ("R91.8", "514")])
def test_known_pairs_of_the_phecode_map(icd, phe):
    assert phecode(icd) == phe


def test_unknown_code_is_an_error_not_a_guess():
    with pytest.raises(ValueError, match=rf"no phecode for I10 among the {len(PHECODES)} codes"):
        phecode("I10")
    with pytest.raises(ValueError, match="'pneumonia' is not an ICD-10-CM code"):
        phecode("pneumonia")


def test_more_than_one_may_have_its_own_code():
    left, right = Finding("inguinal hernia", "left"), Finding("inguinal hernia", "right")
    assert study_codes([left]) == ["K40.90"]
    assert study_codes([right, left]) == ["K40.20"]
    assert finding_code(Finding("pulmonary nodule", "left", count=3)) == "R91.8"
    assert study_codes([Finding("ascites"), Finding("pleural effusion", "left")]) == ["J90", "R18.8"]
