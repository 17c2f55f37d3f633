"""Augmentation: voxels, masks, affines, words and boxes keep telling the same story."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vol3d.data.augment import Augment, mirror_study
from vol3d.data.batch import Batch
from vol3d.data.manifest import Study

SHAPE = (24, 20, 16)
SPACING = (2.0, 2.0, 4.0)


def ball(centre: tuple[float, float, float], radius: float) -> torch.Tensor:
    axes = [torch.arange(size) * step for size, step in zip(SHAPE, SPACING, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    return ((grid - torch.tensor(centre)) ** 2).sum(-1) < radius**2


def batch(**fields: object) -> Batch:
    """One ball left of the middle, in image and mask; affine with an offset. The second study has no mask."""
    inside = ball((14.0, 20.0, 32.0), 7)
    affine = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([-50.0, 10.0, 100.0])
    mask = torch.stack([inside.short() * 4, torch.full(SHAPE, -1, dtype=torch.int16)])
    studies = [Study(f"s{i}", Path("a.nii.gz"), **fields) for i in range(2)]  # type: ignore[arg-type]
    image = torch.stack([inside.float(), inside.float()])[:, None]
    return Batch(studies, image, affine.repeat(2, 1, 1), mask=mask)


def centre_mm(values: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    index = values.nonzero().double().mean(0)
    return affine[:3, :3] @ index + affine[:3, 3]


def test_off_changes_nothing() -> None:
    before = batch()
    after = Augment()(before, 3)
    assert torch.equal(after.image, before.image)
    assert after.studies == before.studies


@pytest.mark.parametrize("step", range(4))
def test_moved_voxels_keep_their_place_in_mm(step: int) -> None:
    before = batch()
    after = Augment(rotate=20.0, zoom=0.15, shift=2.0)(before, step)
    assert after.mask is not None
    for row in (0, 1):
        moved = after.image[row, 0] > 0.5
        assert not torch.equal(moved, before.image[row, 0] > 0.5)
        wanted = centre_mm(before.image[row, 0] > 0.5, before.affine[row])
        assert torch.dist(centre_mm(moved, after.affine[row]), wanted) < 1.0, "mm"
    volume = [(b.image[0] > 0.5).sum() * b.affine[0].det().abs() for b in (before, after)]
    assert volume[1] == pytest.approx(float(volume[0]), rel=0.15)
    overlap = ((after.mask[0] == 4) & (after.image[0, 0] > 0.5)).sum() / (after.mask[0] == 4).sum()
    assert overlap > 0.85
    assert set(after.mask[0].unique().tolist()) == {0, 4}
    assert set(after.mask[1].unique().tolist()) == {-1}, "unknown stays unknown"


def test_same_seed_and_step_same_result() -> None:
    augment = Augment(rotate=10.0, zoom=0.1, shift=1.0, brightness=0.1, contrast=0.1, noise=0.05, flip=0.5)
    assert torch.equal(augment(batch(), 5).image, augment(batch(), 5).image)
    assert not torch.equal(augment(batch(), 5).image, augment(batch(), 6).image)
    image = augment(batch(), 5).image
    assert not torch.equal(image[0], image[1]), "each study its own"


WORDS = {
    "report": "Small left pleural effusion. Nodule in the right middle lobe. The left hepatic lobe is normal.",
    "labels_known": {"left pleural effusion": 1},
    "mask_labels": {"kidney_left": 4, "liver": 5},
    "finding_labels": {"left pleural effusion": 1},
    "boxes": [{"label": "left pleural effusion", "min_mm": [-40.0, 20.0, 120.0], "max_mm": [-30.0, 40.0, 140.0]}],
    "questions": [{"question": "Which side?", "answer": "left", "choices": ["left", "right"], "kind": "side"}],
}


def test_flip_turns_voxels_words_names_and_boxes_together() -> None:
    before = batch(**WORDS)
    after = Augment(flip=1.0)(before)
    assert torch.equal(after.image, before.image.flip(2))
    assert after.mask is not None
    assert before.mask is not None
    assert torch.equal(after.mask, before.mask.flip(1))
    study = after.studies[0]
    assert study.report == "Small right pleural effusion. Nodule in the lingula. The left hepatic lobe is normal."
    assert study.labels_known == {"right pleural effusion": 1}
    assert study.mask_labels == {"kidney_right": 4, "liver": 5}
    assert study.finding_labels == {"right pleural effusion": 1}
    assert study.questions == [
        {"question": "Which side?", "answer": "right", "choices": ["right", "left"], "kind": "side"}
    ]
    [box] = study.boxes
    # The grid runs from −50 to −4 mm along x, so its middle is at −27.
    assert (box["label"], box["min_mm"], box["max_mm"]) == ("right pleural effusion", [-24, 20, 120], [-14, 40, 140])
    assert before.studies[0].report == WORDS["report"], "the manifest's own row is not touched"


def test_twice_mirrored_is_the_same() -> None:
    study = Study("s", Path("a.nii.gz"), **WORDS)  # type: ignore[arg-type]
    affine = batch().affine[0].numpy()
    twice = mirror_study(mirror_study(study, affine, SHAPE[0]), affine, SHAPE[0])
    assert twice == study


def test_codes_that_may_name_a_side_are_never_flipped() -> None:
    sided = batch(codes=["C34.11"], code_system="icd10cm")
    assert torch.equal(Augment(flip=1.0)(sided).image, sided.image)
    sideless = batch(codes=["J90"], code_system="icd10cm")
    assert torch.equal(Augment(flip=1.0)(sideless).image, sideless.image.flip(2))


def test_derived_texts_are_not_frozen_by_a_flip() -> None:
    study = mirror_study(Study("s", Path("a"), findings="Left effusion."), batch().affine[0].numpy(), 24)
    assert study.report == "FINDINGS:\nRight effusion."


def test_amounts_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"noise is -0\.1"):
        Augment(noise=-0.1)
    with pytest.raises(ValueError, match=r"flip is 2\.0: an amount from 0 to 1"):
        Augment(flip=2.0)
    raw = batch()
    with pytest.raises(ValueError, match=r"image is torch\.int16: augment after the window"):
        Augment()(Batch(raw.studies, raw.image.short(), raw.affine))
