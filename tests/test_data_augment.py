"""Augmentation: voxels, masks, affines, words and boxes keep telling the same story."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_text_parser as sentences
import torch
from volume_files import SHARED, needs_shared

from vol3d.data.augment import Augment, Transforms
from vol3d.data.batch import Batch
from vol3d.data.boxes import keep_in_view, visible_share
from vol3d.data.dataset import VolumeData
from vol3d.data.manifest import Manifest, Study
from vol3d.data.mirror import mirror_study
from vol3d.model.box_prompts import boxes_of
from vol3d.text.lexicon import swap_finding, swap_sides
from vol3d.text.ontology import in_report_order
from vol3d.text.parser import parse_findings
from vol3d.volume.grid import Grid

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


def test_shading_goes_by_the_window_whatever_values_its_ends_became() -> None:
    """The same HU through a card of 0 … 1 and one of −1 … 1: the same changes in HU, and the middle stays in place."""
    hu = (batch().image * 1500 - 1000).short()
    shade = Augment(brightness=0.1, contrast=0.5, noise=0.05)
    changed = []
    for out_range in ((0.0, 1.0), (-1.0, 1.0)):
        data = VolumeData(Manifest([]), Grid(window=(-1000, 1000), out_range=out_range))
        windowed = data.on_after_batch_transfer(replace(batch(), image=hu), 0)
        low, high = windowed.value_range
        assert (low, high) == out_range
        changed.append((shade(windowed, 1).image - low) / (high - low))
        flat = replace(windowed, image=torch.full_like(windowed.image, (low + high) / 2))
        assert torch.equal(Augment(contrast=0.5)(flat, 1).image, flat.image)
    torch.testing.assert_close(changed[0], changed[1], rtol=0, atol=1e-6)
    assert Grid(window="zscore").value_range == (-0.5, 0.5), "about the mean"


WORDS = {
    "report": "Small left pleural effusion. Nodule in the right middle lobe. The left hepatic lobe is normal.",
    "labels_known": {"left pleural effusion": 1},
    "mask_labels": {"kidney_left": 4, "liver": 5},
    "finding_labels": {"left pleural effusion": 1},
    "boxes": [{"label": "left pleural effusion", "min_mm": [-40.0, 20.0, 120.0], "max_mm": [-30.0, 40.0, 140.0]}],
    "questions": [{"question": "Which side?", "answer": "left", "choices": ["left", "right"], "kind": "side"}],
    "meta": {"prior_report": "Large left pleural effusion.", "age": 60},
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
    assert study.meta == {"prior_report": "Large right pleural effusion.", "age": 60}, "the prompt shows it"
    [box] = study.boxes
    # The grid runs from −50 to −4 mm along x, so its middle is at −27.
    assert (box["label"], box["min_mm"], box["max_mm"]) == ("right pleural effusion", [-24, 20, 120], [-14, 40, 140])
    assert before.studies[0].report == WORDS["report"], "the manifest's own row is not touched"


def test_twice_mirrored_is_the_same() -> None:
    study = Study("s", Path("a.nii.gz"), **WORDS)  # type: ignore[arg-type]
    affine = batch().affine[0].numpy()
    twice = mirror_study(mirror_study(study, affine, SHAPE[0]), affine, SHAPE[0])
    assert twice == study


def mm_box(low: tuple[float, ...], high: tuple[float, ...], label: str = "nodule") -> dict[str, Any]:
    """A box from the lower to the upper face of voxels of `batch()`."""

    def mm(end: tuple[float, ...]) -> list[float]:
        return [(v - 0.5) * step + first for v, step, first in zip(end, SPACING, (-50, 10, 100), strict=True)]

    return {"label": label, "min_mm": mm(low), "max_mm": mm(high)}


@pytest.mark.parametrize("kind", ["own", "monai", "torchio"])
def test_a_box_that_leaves_the_view_is_not_taught_at_that_visit(kind: str) -> None:
    """Two slices at the upper end: some steps move them out, and then the row has no box; others keep what they see."""
    edge = batch(boxes=[mm_box((5, 10, 14), (10, 15, 16))], labels_known={"nodule": 1})
    augment = Augment(shift=5.0, rotate=10.0) if kind == "own" else Transforms(transform(f"{kind} move"))
    kept = 0
    for step in range(20):
        after = augment(edge, step)
        for row, study in enumerate(after.studies):
            share = visible_share(edge.studies[row].boxes[0], after.affine[row].numpy(), SHAPE)
            assert study.boxes == (edge.studies[row].boxes if share >= 0.5 else [])
            asks = boxes_of(after, row)  # refuses what lies outside
            assert [ask.name for ask in asks] == ["nodule"] * len(study.boxes), "neither there nor absent"
            kept += len(study.boxes)
    assert 4 < kept < 40
    assert len(edge.studies[0].boxes) == 1, "the manifest's own row is not touched"


def test_what_the_grid_itself_cuts_off_is_no_fault_of_augmentation() -> None:
    inside, cut, outside = mm_box((5, 5, 5), (9, 9, 9)), mm_box((5, 5, 15), (9, 9, 25)), mm_box((5, 5, 20), (9, 9, 22))
    affine = batch().affine[0].numpy()
    assert [visible_share(box, affine, SHAPE) for box in (inside, cut, outside)] == pytest.approx([1, 0.1, 0])
    study = Study("s", Path("a"), boxes=[inside, cut, outside])
    assert keep_in_view(study, affine, affine, SHAPE) is study, "partly cut is learnt, outside is refused by the task"
    moved = affine.copy()
    moved[2, 3] -= 4.0  # one slice down
    assert keep_in_view(study, affine, moved, SHAPE).boxes == [inside, outside]
    with pytest.raises(ValueError, match="lies outside the volume"):
        boxes_of(Augment(shift=1.0)(batch(boxes=[mm_box((5, 5, 30), (9, 9, 32))])), 0)


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


def transform(name: str) -> Any:
    """Of MONAI or torchio; the flips have the probability 1."""
    from monai import transforms as monai

    keys = ("image", "mask", "finding_mask")
    own = {"allow_missing_keys": True}
    if name.startswith("torchio"):
        torchio = pytest.importorskip("torchio")
        return {
            "torchio flip": lambda: torchio.RandomFlip(axes=0, flip_probability=1.0),
            "torchio turn": lambda: torchio.RandomFlip(axes=(0, 1), flip_probability=1.0),
            "torchio move": lambda: torchio.RandomAffine(scales=0.1, degrees=15, translation=3),
            "torchio noise": lambda: torchio.RandomNoise(std=0.1),
        }[name]()
    return {
        "monai flip": lambda: monai.RandFlipd(keys, prob=1.0, spatial_axis=0, **own),
        "monai turn": lambda: monai.RandFlipd(keys, prob=1.0, spatial_axis=(0, 1), **own),
        "monai move": lambda: monai.RandAffined(
            keys, prob=1.0, rotate_range=0.3, translate_range=(2, 2, 3), scale_range=0.1, padding_mode="border",
            mode=("bilinear", "nearest", "nearest"), **own,
        ),
        "monai noise": lambda: monai.RandGaussianNoised("image", prob=1.0, std=0.1, **own),
        "monai three": lambda: monai.Compose(
            [monai.RandFlipd(keys, prob=1.0, spatial_axis=axis, **own) for axis in range(3)]
        ),
    }[name]()  # fmt: skip


NAMES = ["monai flip", "monai turn", "monai move", "monai noise", "monai three"]
NAMES += ["torchio flip", "torchio turn", "torchio move", "torchio noise"]


@pytest.mark.parametrize("name", NAMES)
def test_words_and_boxes_follow_what_other_libraries_do_to_the_voxels(name: str) -> None:
    """A box is where the ball is, on the side that the words name: seen from the liver's side, not the grid's."""
    before = batch(**(WORDS | {"boxes": [{"label": "left", "min_mm": [-43, 23, 125], "max_mm": [-29, 37, 139]}]}))
    after = Transforms(transform(name))(before, 2)
    assert not torch.equal(after.image, before.image)
    mirrored = name.endswith(("flip", "three"))
    for row, study in enumerate(after.studies):
        assert study.report.startswith(f"Small {'right' if mirrored else 'left'} pleural effusion"), study.report
        assert ("kidney_right" in study.mask_labels) == mirrored
        assert study.boxes[0]["label"] == ("right" if mirrored else "left")
        low, high = (torch.tensor(study.boxes[0][end], dtype=torch.float64) for end in ("min_mm", "max_mm"))
        found = centre_mm(after.image[row, 0] > 0.5, after.affine[row])
        assert torch.dist(found, (low + high) / 2) < 1.0, "mm"
        assert after.affine[row, :3, :3].det() > 0
    assert after.mask is not None
    ball_now = after.mask[0] == 4
    assert (ball_now & (after.image[0, 0] > 0.5)).sum() > 0.8 * ball_now.sum()
    assert set(after.mask[0].unique().tolist()) == {0, 4}
    assert set(after.mask[1].unique().tolist()) == {-1}, "unknown stays unknown"
    again = Transforms(transform(name))(before, 2)
    assert torch.equal(again.image, after.image)
    assert before.studies[0].report == WORDS["report"]


@pytest.mark.parametrize("name", ["monai flip", "torchio flip"])
def test_sided_codes_turn_the_voxels_back(name: str) -> None:
    sided = batch(**WORDS, codes=["C34.11"], code_system="icd10cm")
    after = Transforms(transform(name))(sided)
    assert torch.equal(after.image, sided.image)
    assert after.mask is not None
    assert sided.mask is not None
    assert torch.equal(after.mask, sided.mask)
    assert after.studies == sided.studies
    torch.testing.assert_close(after.affine, sided.affine)


def test_transforms_that_cannot_serve_a_batch() -> None:
    from monai.transforms import CenterSpatialCropd, Lambdad, RandFlipd

    with pytest.raises(ValueError, match=r"study 's0': the transform made image \(1, 8, 8, 8\) of \(1, 24, 20, 16\)"):
        Transforms(CenterSpatialCropd("image", roi_size=(8, 8, 8)))(batch())
    with pytest.raises(ValueError, match="gave a plain tensor as image"):
        Transforms(Lambdad("image", lambda image: image.as_tensor().clone(), track_meta=False))(batch())
    with pytest.raises(ValueError, match=r"image is torch\.int16: augment after the window"):
        Transforms(RandFlipd("image"))(Batch(batch().studies, batch().image.short(), batch().affine))


def test_labels_are_never_mixed() -> None:
    """MONAI interpolates every key unless told otherwise: half-way between a kidney (1) and a nodule (3) lies a 2."""
    from monai.transforms import RandAffined, RandZoomd

    keys, own = ("image", "mask", "finding_mask"), {"prob": 1.0, "allow_missing_keys": True}
    for mixing in (RandAffined(keys, rotate_range=0.3, **own), RandZoomd(keys, min_zoom=1.1, max_zoom=1.2, **own)):
        with pytest.raises(ValueError, match=r"'s0': the transform interpolated between the labels of mask.*nearest"):
            Transforms(mixing)(batch(**WORDS))


def test_a_mask_is_never_left_where_the_image_was() -> None:
    from monai.transforms import RandAffined, RandFlipd

    for alone in (RandFlipd("image", prob=1.0, spatial_axis=0), RandAffined("image", prob=1.0, translate_range=3)):
        with pytest.raises(ValueError, match=r"study 's0': the transform moved image and mask apart: .*finding_mask"):
            Transforms(alone)(batch(**WORDS))
    with pytest.raises(ValueError, match="image and mask apart"):
        Transforms(RandFlipd("mask", prob=1.0, spatial_axis=0))(batch(**WORDS))
    torchio = pytest.importorskip("torchio", reason='needs pip install "vol3d[torchio]"')
    for options in ({"include": ["image"]}, {"exclude": ["mask"]}):
        flip = torchio.RandomFlip(axes=0, flip_probability=1.0, **options)
        with pytest.raises(ValueError, match=r"Flip has include=.*: leave both out"):
            Transforms(torchio.Compose([flip]))(batch(**WORDS))
    # What only changes the values may well be for the image alone.
    after = Transforms(torchio.RandomNoise(std=0.1, include=["image"]))(batch(**WORDS))
    assert not torch.equal(after.image, batch().image)


def test_sentences_of_radiologists_mirror_with_their_findings() -> None:
    """Every sentence that the parser is tested with, the real ones included, says the mirrored findings."""
    texts = [item if isinstance(item, str) else item[0] for item in [*sentences.REAL_LIFE, *sentences.TRICKY]]
    texts += [item if isinstance(item, str) else item[0] for item in [*sentences.POSITIVE, *sentences.MODEL_LIKE]]
    assert sum("left" in text.lower() or "right" in text.lower() for text in texts) > 40
    for text in texts:
        study = mirror_study(Study("s", Path("a"), findings=text), batch().affine[0].numpy(), SHAPE[0])
        wanted = in_report_order(swap_finding(finding) for finding in parse_findings(text))
        assert parse_findings(study.findings) == wanted, text


@needs_shared
def test_names_of_real_masks_mirror_onto_each_other() -> None:
    """TotalSegmentator's own names: paired organs and ribs change places; vertebrae, heart chambers and colon stay."""
    labels = json.loads((SHARED / "abdomen_ct_totalseg/labels.json").read_text())["labels"]
    names = {label["name"] for label in labels.values()}
    paired = {name for name in names if re.search(r"_(left|right)(_\d+)?$", name) and "heart" not in name}
    assert len(paired) > 20
    for name in names:
        swapped = swap_sides(name)
        assert swap_sides(swapped) == name
        assert (swapped != name) == (name in paired), name
        assert re.sub("left|right", "", swapped) == re.sub("left|right", "", name), "ribs keep their number"
