"""Questions for a manifest: read from masks by hand-worked numbers, balanced, and put where there were none."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vol3d
from vol3d.data.questions import add_questions, balance, extent_mm, mask_facts, study_facts
from vol3d.data.study import Study
from vol3d.text.questions import answers_to

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])


def test_masks_tell_side_count_size_and_organ() -> None:
    mask, organs = np.zeros((20, 20, 10), np.int64), np.zeros((20, 20, 10), np.int64)
    organs[:10], organs[10:] = 1, 2
    mask[2:7, 4, 4] = 1  # five voxels of 2 mm in a row
    mask[2:4, 12:14, 4] = 1
    mask[15, 15, 2:5] = 2  # three voxels of 5 mm
    facts = mask_facts(
        mask, AFFINE, {"left renal stone": 1, "shadow": 2, "ascites": 3},
        organs=organs, organ_labels={"left kidney": 1, "bowel": 2},
    )  # fmt: skip
    assert dict(facts.present) == {"left renal stone": True, "shadow": True, "ascites": False}
    stone, shadow = facts.findings
    assert (stone.name, stone.side, stone.count, stone.site) == ("renal stone", "left", 2, "left kidney")
    assert stone.size_mm == pytest.approx(4 * 2 + 2)
    assert shadow.size_mm == pytest.approx(2 * 5 + 2)
    assert (shadow.side, shadow.site, set(shadow.sites)) == (None, "bowel", {"left kidney", "bowel"})


def test_an_organ_that_holds_some_of_a_finding_is_no_wrong_answer() -> None:
    mask, organs = np.zeros((20, 20, 10), np.int64), np.zeros((20, 20, 10), np.int64)
    organs[:8], organs[8:16], organs[16:] = 1, 2, 3
    mask[4:10, 4, 4] = 1  # four voxels in the one, two in the other
    named = {"liver": 1, "right kidney": 2, "bowel": 3}
    (cyst,) = mask_facts(mask, AFFINE, {"hepatic cyst": 1}, organs=organs, organ_labels=named).findings
    assert (cyst.site, cyst.sites) == ("liver", ("liver", "bowel"))


def test_the_diameter_of_a_ball_within_its_voxels() -> None:
    grid = np.stack(np.meshgrid(*(np.arange(41) - 20,) * 3, indexing="ij"), -1) * np.array([1.0, 1.0, 1.0])
    assert extent_mm(np.linalg.norm(grid, axis=-1) <= 15, np.eye(4)) == pytest.approx(31, abs=1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> vol3d.Manifest:
    folder = tmp_path_factory.mktemp("phantoms")
    findings = ["pleural effusion", "renal cyst", "aortic aneurysm"]
    path = vol3d.phantom.write(folder, studies=3, seed=3, shape=(64, 64, 32), findings=findings, prevalence=0.5)
    return vol3d.Manifest.read(path)


def test_masks_agree_with_the_phantoms_own_labels(manifest: vol3d.Manifest) -> None:
    for study in manifest:
        bare = replace(study, report=None, findings=None, impression=None, labels_known={}, codes=[], codes_absent=[])
        facts = study_facts(bare, masks=True)
        assert {key for key, there in facts.present.items() if there} == set(study.meta["findings"])
        assert all(fact.size_mm is None for fact in facts.findings if fact.name == "pleural effusion")


def test_rows_with_questions_keep_them(manifest: vol3d.Manifest) -> None:
    bare = vol3d.Manifest([replace(manifest[0], questions=[]), *manifest[1:]], manifest.path)
    asked = add_questions(bare, kinds=["side", "presence"], masks=False, most=1.0)
    assert asked[0].questions
    assert {row["kind"] for row in asked[0].questions} <= {"side", "presence"}
    assert asked[1].questions == manifest[1].questions
    assert add_questions(bare, kinds=["side"], masks=False, overwrite=True)[1].questions != manifest[1].questions


def test_balance_leaves_out_the_common_answers() -> None:
    row = {"question": "Which phase?", "kind": "phase", "choices": ["a", "b", "c"]}
    asked = {f"s{n}": [{**row, "answer": "a" if n < 80 else "b" if n < 95 else "c"}] for n in range(100)}
    kept = Counter(row["answer"] for rows in balance(asked, most=0.4).values() for row in rows)
    assert kept["c"] == 5
    assert max(kept.values()) / kept.total() <= 0.42
    assert balance(asked, most=0.4) == balance(asked, most=0.4)
    assert balance(asked, most=1.0) == asked


def test_bad_questions_are_refused() -> None:
    bad = [{"question": "Where?", "answer": "liver", "choices": ["spleen", "kidney"]}]
    study = Study(study="s7", image=Path("none.nii.gz"), questions=bad)
    with pytest.raises(ValueError, match=r"'s7'.*'liver' is not among its 2 choices"):
        add_questions(vol3d.Manifest([study]))
    with pytest.raises(ValueError, match=r"most is 1.5"):
        balance({}, most=1.5)


def test_questions_have_one_order_in_every_process() -> None:
    """Answers are kept in a file and scored by another process; Python shuffles a set of words anew in each."""
    code = (
        "from pathlib import Path; from vol3d.data.questions import asked_of; from vol3d.data.study import Study\n"
        "report = 'Left pleural effusion. Right pneumothorax. Ascites. Cardiomegaly. Splenomegaly. No gallstones.'\n"
        "print([row['question'] + row['answer'] for row in asked_of(Study('s', Path('s.nii'), report=report))])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "123"
    }
    assert len(said) == 1
    assert b"effusion" in said.pop()


def test_answers_find_their_questions() -> None:
    sides = {"question": "On which side?", "choices": ["left", "right"]}
    asked = [{"question": "What?"}, sides, sides | {"choices": ["up", "down"]}]
    given = [row | {"answer": str(place)} for place, row in enumerate(asked)]
    assert answers_to(asked, given[::-1]) == given
    assert answers_to(asked, given[1:]) == [None, *given[1:]]
    bare = [{"answer": "a"}, {"answer": "b"}, {"answer": "c"}]
    assert answers_to(asked, bare) == bare, "answers that repeat no question are in their places"
    assert answers_to(asked, bare[:2]) == [None] * 3
