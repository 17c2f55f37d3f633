"""Masks and boxes: hand-worked values, MONAI, M3D-Bench's published formulas, empty masks."""

import numpy as np
import pytest
import torch

from vol3d.evaluation.metrics.boxes import box_iou, m3d_hull_iou, score_boxes
from vol3d.evaluation.metrics.segmentation import mask_scores, score_segmentation

SPACING = (1.0, 2.0, 3.0)


def block(low, high, shape=(20, 16, 12)):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def test_equal_masks():
    mask = block((2, 2, 2), (8, 8, 8))
    got = mask_scores(mask, mask, SPACING)
    assert (got["dice"], got["nsd"], got["hd95_mm"], got["volume_error_ml"]) == (1, 1, 0, 0)


def test_a_shift_by_hand():
    truth, predicted = block((2, 4, 4), (8, 8, 8)), block((4, 4, 4), (10, 8, 8))
    got = mask_scores(predicted, truth, SPACING)
    assert got["dice"] == pytest.approx(2 * 4 / 12)
    assert got["hd95_mm"] == pytest.approx(2.0)  # two voxels of 1 mm along x
    assert got["volume_error_ml"] == 0
    larger = mask_scores(block((2, 4, 4), (8, 8, 10)), truth, SPACING)
    assert larger["volume_error_ml"] == pytest.approx(6 * 4 * 2 * 6 / 1000)
    assert larger["hd95_mm"] == pytest.approx(6.0)  # two voxels of 3 mm along z


def test_surface_scores_equal_monai_on_the_whole_grid():
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    rng = np.random.default_rng(0)
    truth = block((3, 3, 3), (12, 12, 9))
    predicted = truth & (rng.random(truth.shape) < 0.9)
    got = mask_scores(predicted, truth, SPACING, tolerance_mm=1.0)
    one, two = (torch.from_numpy(np.stack([~m, m])[None].astype(np.float32)) for m in (predicted, truth))
    hd95 = compute_hausdorff_distance(one, two, percentile=95, spacing=SPACING, include_background=False)
    nsd = compute_surface_dice(one, two, [1.0], spacing=SPACING, include_background=False)
    assert got["hd95_mm"] == pytest.approx(float(hd95))
    assert got["nsd"] == pytest.approx(float(nsd))


def test_empty_masks_are_defined():
    empty, some = block((0, 0, 0), (0, 0, 0)), block((1, 1, 1), (3, 3, 3))
    both = mask_scores(empty, empty, SPACING)
    assert (both["dice"], both["nsd"], both["hd95_mm"]) == (1, 1, None)
    for one, two in ((empty, some), (some, empty)):
        got = mask_scores(one, two, SPACING)
        assert (got["dice"], got["nsd"], got["hd95_mm"]) == (0, 0, None)
        assert got["volume_error_ml"] == pytest.approx(8 * 6 / 1000)


def test_m3d_soft_dice_is_the_published_formula_and_differs_from_dice():
    rng = np.random.default_rng(1)
    truth = block((3, 3, 3), (12, 12, 9))
    logits = torch.from_numpy(np.where(truth, 1.0, -1.0) + rng.normal(0, 0.5, truth.shape))
    p = torch.sigmoid(logits)
    published = 2 * (p * torch.from_numpy(truth)).sum() / (p.sum() + truth.sum() + 1)
    got = mask_scores((logits > 0).numpy(), truth, SPACING, probabilities=p.numpy())
    assert got["m3d_soft_dice"] == pytest.approx(float(published))
    assert got["dice"] > got["m3d_soft_dice"] + 0.2
    empty = np.zeros_like(truth)
    assert mask_scores(empty, empty, SPACING)["m3d_soft_dice"] == 0


def test_means_by_label_and_what_is_undefined():
    some, empty = block((1, 1, 1), (5, 5, 5)), block((0, 0, 0), (0, 0, 0))
    rows = [
        mask_scores(some, some, SPACING) | {"label": "liver"},
        mask_scores(empty, some, SPACING) | {"label": "liver"},
        mask_scores(empty, empty, SPACING) | {"label": "spleen"},
    ]
    got = score_segmentation(rows, ["a", "b", "c"], replicates=50)
    assert got["dice"]["value"] == pytest.approx(2 / 3)
    assert got["hd95_mm"]["value"] == 0
    assert got["hd95_mm"]["note"] == "over the 1 of 3 masks for which it is defined"
    assert got["per_label"]["liver"]["dice"]["value"] == 0.5
    assert got["per_label"]["spleen"]["hd95_mm"]["note"] == "defined for none of 1 masks"
    assert got["per_label"]["liver"]["support"] == 2


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) voxels, truth is \(3, 3, 3\)"):
        mask_scores(np.ones((2, 2, 2), dtype=bool), np.ones((3, 3, 3), dtype=bool), SPACING)


def test_iou_and_hull_iou_of_two_half_overlapping_cubes():
    one, two = (0, 0, 0, 1, 1, 1), (0.5, 0.5, 0.5, 1.5, 1.5, 1.5)
    assert box_iou(one, two) == pytest.approx(0.125 / 1.875)
    assert m3d_hull_iou(one, two) == pytest.approx(0.125 / (1.5**3 + 1e-6))
    assert round(box_iou(one, two), 3) == 0.067
    assert round(m3d_hull_iou(one, two), 3) == 0.037


def test_boxes_apart_inside_and_flat():
    assert box_iou((0, 0, 0, 1, 1, 1), (2, 2, 2, 3, 3, 3)) == 0
    assert box_iou((0, 0, 0, 2, 2, 2), (0, 0, 0, 1, 1, 1)) == pytest.approx(1 / 8)
    assert box_iou((0, 0, 0, 0, 1, 1), (0, 0, 0, 0, 1, 1)) == 1
    assert m3d_hull_iou((0, 0, 0, 0, 1, 1), (0, 0, 0, 0, 1, 1)) == 0
    with pytest.raises(ValueError, match=r"box from \[2.0, 0.0, 0.0\] to \[1.0, 1.0, 1.0\]"):
        box_iou((2, 0, 0, 1, 1, 1), (0, 0, 0, 1, 1, 1))
    with pytest.raises(ValueError, match=r"shape \(4,\), not \(6,\)"):
        box_iou((0, 0, 1, 1), (0, 0, 0, 1, 1, 1))


def test_box_scores():
    truth = [(0, 0, 0, 10, 10, 10)] * 3
    got = score_boxes(truth, [(0, 0, 0, 10, 10, 10), (0, 0, 0, 10, 10, 4), None], list("abc"), replicates=50)
    assert got["iou"]["value"] == pytest.approx((1 + 0.4 + 0) / 3)
    assert got["m3d_hull_iou"]["value"] == pytest.approx((1 + 0.4 - 1) / 3, abs=1e-6)
    assert got["found@0.5"]["value"] == pytest.approx(1 / 3)
    assert got["found@0.25"]["value"] == got["readable"]["value"] == pytest.approx(2 / 3)


def test_soft_dice_of_kept_probabilities_is_m3d_benchs():
    from vol3d.evaluation.metrics.prompts import Asked, score_prompts
    from vol3d.volume.runs import decode_levels, encode_levels

    rng = np.random.default_rng(3)
    truth = rng.random((6, 5, 4)) < 0.3
    p = np.clip(truth * 0.7 + rng.random(truth.shape) * 0.3, 0, 1).astype(np.float32)
    p[0] = 0
    kept = encode_levels(p)
    assert kept["low"][0] == 1
    assert decode_levels(kept, p.shape) == pytest.approx(p, abs=1 / 30 + 1e-6)
    assert (decode_levels(encode_levels(np.zeros_like(p)), p.shape) == 0).all()
    with pytest.raises(
        ValueError, match=r"probabilities of \(5, 5, 4\) voxels from \(1, 0, 0\) do not fit in \(5, 5, 4\)"
    ):
        decode_levels(kept, (5, 5, 4))
    asked = [Asked(name, "liver", False, truth, (1.0, 1.0, 1.0)) for name in ("a", "b")]
    given = {"studies": ["a", "b"], "patients": ["a", "b"], "replicates": 20}
    soft = score_prompts(asked, lambda *_: p > 0.5, **given, probabilities=lambda *_: decode_levels(kept, p.shape))
    by_hand = 2 * (p * truth).sum() / (p.sum() + truth.sum() + 1)
    assert soft["m3d_soft_dice"]["value"] == pytest.approx(by_hand, abs=0.01)
    assert soft["organ_m3d_soft_dice"] == soft["m3d_soft_dice"]
    assert soft["dice"]["value"] != pytest.approx(by_hand, abs=0.05)
    without = score_prompts(asked, lambda *_: p > 0.5, **given)
    assert without["m3d_soft_dice"]["note"] == "no probabilities were kept with the masks"


def test_every_score_of_masks_stands_beside_that_of_another_patients():
    from vol3d.evaluation.metrics.prompts import Asked, score_prompts

    cubes = {name: np.zeros((8, 8, 8), bool) for name in ("a", "b")}
    cubes["a"][1:4, 1:4, 1:4], cubes["b"][3:7, 3:7, 3:7] = True, True
    spacing = (2.0, 2.0, 2.0)
    asked = [Asked(name, "liver", False, cubes[name], spacing) for name in cubes]
    asked.append(Asked("a", "cyst", True, np.zeros_like(cubes["a"]), spacing))
    said = {("a", "cyst"): np.zeros_like(cubes["a"]), ("b", "cyst"): cubes["b"]}
    said |= {(name, "liver"): cube for name, cube in cubes.items()}
    got = score_prompts(
        asked,
        lambda *key: said[key],
        ["a", "b"],
        ["a", "b"],
        replicates=20,
        probabilities=lambda *key: said[key].astype(np.float32),
    )
    blindly = got["baselines"]["blind"]
    other = mask_scores(cubes["b"], cubes["a"], spacing)
    assert blindly["dice"] == blindly["organ_dice"] == pytest.approx(2 / (27 + 64))
    assert blindly["nsd"] == pytest.approx(other["nsd"])
    assert blindly["hd95_mm"] == pytest.approx(other["hd95_mm"])
    assert blindly["volume_error_ml"] == pytest.approx((64 - 27) * 0.008)
    assert blindly["m3d_soft_dice"] == pytest.approx(2 / (27 + 64 + 1))
    assert (blindly["present_found"], blindly["absent_silent"]) == (1.0, 0.0)
    assert (got["present_found"]["value"], got["absent_silent"]["value"]) == (1.0, 1.0)
    named = {name for name, score in got.items() if isinstance(score, dict) and "value" in score}
    assert named <= blindly.keys()
