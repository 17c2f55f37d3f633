"""The prompt decoder: shapes, independence of prompts, geometry in millimetres, phrases, clicks, and its losses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import world
from hypothesis import given, settings
from hypothesis import strategies as st

import vol3d
from vol3d.data.batch import Batch, collate
from vol3d.model.asking import asks_of, click_inside, correct, mask_boxes, show, simulate, truth_of
from vol3d.model.mask_decoder import PromptDecoder, Prompts
from vol3d.model.pixel_decoder import finer_maps
from vol3d.model.places import boxes_to_mm, boxes_to_shares, to_shares
from vol3d.model.text_prompt import LanguagePrompt, PhraseEncoder, phrase_features, wordings
from vol3d.training.losses import box_loss, deep_mask_loss, dice_loss, generalised_iou, mask_loss
from vol3d.volume.runs import decode_runs, encode_runs

SHAPE = (16, 16, 8)


def encoder(name="conv"):
    if name == "unet":
        return vol3d.encoders.create("unet3d-base", width=8, blocks=(1, 1))
    return vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=1, num_heads=2, patch_size=(4, 4, 2), stem=name)


def decoder(of):
    torch.manual_seed(0)
    return PromptDecoder(of, dim=32, depth=1, num_heads=2, pixel_dim=8).eval()


def affines(batch=2):
    affine = torch.eye(4, dtype=torch.float64).repeat(batch, 1, 1)
    affine[:, :3, :3] = torch.diag(torch.tensor([2.0, 3.0, 5.0]))
    affine[:, :3, 3] = torch.tensor([-10.0, 4.0, 100.0])
    return affine


def seen_by(of, batch=2):
    model, head = of.eval(), decoder(of)
    image, affine = torch.randn(batch, 1, *SHAPE), affines(batch)
    return head, head.see(model(image, affine), image, affine)


def every_kind(batch=2, prompts=3):
    """A text, a click, a box and an earlier mask, each in some of the prompts."""
    generator = torch.Generator().manual_seed(1)
    boxes = torch.tensor([-6.0, 8, 105, 4, 30, 130], dtype=torch.float64).repeat(batch, prompts, 1)
    boxes[:, 0] = torch.nan
    labels = torch.tensor([-1, 1, 0])[:prompts].expand(batch, -1)[:, :, None]
    return Prompts(
        text=torch.randn(batch, prompts, 32, generator=generator),
        has_text=torch.tensor([True, False, True])[:prompts].expand(batch, -1),
        points=torch.tensor([0.0, 20, 120], dtype=torch.float64).repeat(batch, prompts, 1, 1),
        point_labels=labels,
        boxes=boxes,
        mask=(torch.rand(batch, prompts, *SHAPE, generator=generator) > 0.5).float(),
        has_mask=torch.tensor([False, False, True])[:prompts].expand(batch, -1),
    )


@pytest.mark.parametrize("name", ["linear", "conv", "unet"])
def test_masks_come_at_the_resolution_of_the_grid_and_every_parameter_learns(name):
    of = encoder(name)
    head, seen = seen_by(of)
    answers = head(seen, every_kind())
    assert answers.masks.shape == (2, 3, *SHAPE)
    assert answers.presence.shape == (2, 3)
    assert answers.boxes.shape == (2, 3, 6)
    assert answers.coarse[-1].shape[2:] == seen.grid_size
    finest_first = [level.shape[2] for level in answers.coarse]
    assert finest_first == sorted(finest_first, reverse=True)
    total = answers.masks.square().mean() + answers.presence.mean() + answers.boxes.mean() + answers.tokens.mean()
    (total + sum(level.mean() for level in answers.coarse)).backward()
    without = [key for key, parameter in head.named_parameters() if parameter.grad is None]
    assert not without


def test_finer_maps_are_found_for_encoders_with_and_without_them():
    assert finer_maps(encoder("linear")) == ([], [])
    assert finer_maps(encoder("unet")) == ([8], [(1, 1, 1)])
    channels, strides = finer_maps(encoder("conv"))
    assert len(channels) == len(strides) == 1
    assert encoder("unet").training, "looking at a few voxels leaves the encoder as it was"


def test_finer_maps_are_found_on_a_volume_that_the_encoder_takes():
    """Members whose patches do not divide each other's, and an encoder that reads whole crops."""
    small = {"name": "vit3d-tiny", "embed_dim": 24, "depth": 1, "num_heads": 2}
    members = [small | {"patch_size": (12, 12, 6), "stem": "linear"}, small | {"patch_size": (16, 16, 8)}]
    ensemble = vol3d.encoders.Ensemble(members=members, embed_dim=24, num_heads=2, depth=1)
    assert ensemble.smallest_shape == (96, 96, 48)
    assert finer_maps(ensemble) == finer_maps(ensemble.members[1])
    assert finer_maps(Crops(embed_dim=24, depth=1, num_heads=2, patch_size=(4, 4, 2))) == ([], [])


class Crops(vol3d.encoders.ViT3D):
    """Takes multiples of a crop only, as SpectreEncoder."""

    smallest_shape = (12, 12, 6)

    def grid_size(self, shape):
        assert not any(size % crop for size, crop in zip(shape, self.smallest_shape, strict=True))
        return super().grid_size(shape)


def test_features_without_the_maps_the_decoder_reads_are_refused():
    of = encoder().eval()
    head, image = decoder(of), torch.randn(1, 1, *SHAPE)
    with pytest.raises(ValueError, match="gave 0 finer maps, this decoder was built for 1"):
        head.see(replace(of(image, affines(1)), scales=()), image, affines(1))


def test_many_prompts_at_once_give_what_one_by_one_gives():
    head, seen = seen_by(encoder())
    prompts = every_kind()
    together = head(seen, prompts)
    for place in range(3):
        alone = head(seen, Prompts(**{name: value[:, [place]] for name, value in vars(prompts).items()}))
        torch.testing.assert_close(alone.masks, together.masks[:, [place]], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.presence, together.presence[:, [place]], atol=1e-5, rtol=1e-5)
    # What a prompt does not have is not there at all: the text alone answers as among padded points and boxes.
    text = head(seen, Prompts(text=prompts.text[:, :1]))
    torch.testing.assert_close(text.masks, together.masks[:, :1], atol=1e-5, rtol=1e-5)


def test_a_click_an_earlier_mask_and_a_box_each_change_the_answer():
    head, seen = seen_by(encoder())
    prompts = every_kind()
    words = Prompts(text=prompts.text)
    plain = head(seen, words).masks
    for shown in (
        {"points": prompts.points, "point_labels": torch.ones_like(prompts.point_labels)},
        {"boxes": prompts.boxes.nan_to_num(1.0)},
        {"mask": prompts.mask},
    ):
        assert not torch.allclose(head(seen, replace(words, **shown)).masks, plain, atol=1e-4), shown.keys()


def test_a_click_raises_the_voxels_it_lies_on_and_a_negative_one_lowers_them():
    head, seen = seen_by(encoder())
    point = torch.tensor([[-10.0 + 2 * 5, 4.0 + 3 * 6, 100.0 + 5 * 2]], dtype=torch.float64)  # voxel (5, 6, 2)
    prompts = Prompts(points=point.expand(2, 1, 1, 3), point_labels=torch.ones(2, 1, 1, dtype=torch.long))
    bump = head._clicks(seen, prompts)[0, 0]
    assert tuple(int(i) for i in torch.unravel_index(bump.argmax(), SHAPE)) == (5, 6, 2)
    assert torch.equal(
        head._clicks(seen, replace(prompts, point_labels=prompts.point_labels * 0)), -head._clicks(seen, prompts)
    )
    assert head._clicks(seen, replace(prompts, point_labels=prompts.point_labels * 0 - 1)).abs().max() == 0


def test_places_in_millimetres_go_to_shares_of_the_grid_and_back():
    affine = affines(1)
    faces = torch.tensor([[[-11.0, 2.5, 97.5], [-11.0 + 32, 2.5 + 48, 97.5 + 40]]], dtype=torch.float64)
    assert torch.allclose(to_shares(faces, affine, SHAPE), torch.tensor([[[0.0] * 3, [1.0] * 3]], dtype=torch.float64))
    boxes = torch.tensor([[[-5.0, 7, 105, 3, 20, 131]]], dtype=torch.float64)
    torch.testing.assert_close(boxes_to_mm(boxes_to_shares(boxes, affine, SHAPE), affine, SHAPE), boxes)
    turned = affine.clone()
    turned[0, 0, 0], turned[0, 0, 3] = -2.0, 20.0  # x runs the other way
    assert (boxes_to_shares(boxes, turned, SHAPE)[..., :3] < boxes_to_shares(boxes, turned, SHAPE)[..., 3:]).all()
    torch.testing.assert_close(boxes_to_mm(boxes_to_shares(boxes, turned, SHAPE), turned, SHAPE), boxes)


def test_boxes_around_masks_are_their_outer_faces():
    mask = torch.zeros(1, 2, *SHAPE, dtype=torch.bool)
    mask[0, 0, 2:6, 4:5, 1:8] = True
    boxes = mask_boxes(mask)
    assert torch.allclose(boxes[0, 0], torch.tensor([2 / 16, 4 / 16, 1 / 8, 6 / 16, 5 / 16, 1.0]))
    assert boxes[0, 1].isnan().all()


# --- phrases ------------------------------------------------------------------------------------------------


def test_phrases_of_one_thing_are_near_and_sides_are_told_apart():
    def shared(one, two):
        a, b = set(phrase_features(one, 4096)), set(phrase_features(two, 4096))
        return len(a & b) / len(a | b)

    assert shared("kidney_left", "left kidney") == 1
    assert shared("fluid in the left pleural space", "left pleural effusion") > shared(
        "fluid in the left pleural space", "right pleural effusion"
    )
    vectors = PhraseEncoder(16).embed(["left kidney", "right kidney"])
    assert not torch.allclose(vectors["left kidney"], vectors["right kidney"])
    with pytest.raises(ValueError, match=r"prompt '\?!' names nothing"):
        phrase_features("?!", 4096)


def test_phrases_and_labels_may_be_written_in_any_letters():
    assert not set(phrase_features("肝臓", 4096)) & set(phrase_features("脾臓", 4096))
    assert phrase_features("hépatique", 4096) != phrase_features("h patique", 4096)
    assert wordings("left почка")[:2] == ("left почка", "почка on the left")


def test_wordings_keep_the_side():
    assert wordings("kidney_left")[:3] == ("left kidney", "kidney on the left", "left-sided kidney")
    assert "hydrothorax on the left" in wordings("left pleural effusion")
    assert all("left" in form and "right" not in form for form in wordings("left pleural effusion"))
    assert wordings("urinary_bladder") == ("urinary bladder",)
    assert "fatty liver" in wordings("hepatic steatosis")


def test_the_language_model_reads_volume_and_phrase():
    language = vol3d.LanguageModel.scratch(["Outline the liver."], embed_dim=32, depth=1, num_heads=2)
    from functools import partial

    model = vol3d.VolumeLM(encoder(), partial(vol3d.PerceiverProjector, num_latents=4, num_heads=2), language).eval()
    text = LanguagePrompt(model, 24).eval()
    one, two = (model.encode(torch.randn(2, 1, *SHAPE)) for _ in range(2))
    vectors = text(model, one, [["liver", "left kidney"], ["spleen", "liver"]])
    assert vectors.shape == (2, 2, 24)
    assert not torch.allclose(vectors[0, 0], text(model, two, [["liver"], ["liver"]])[0, 0], atol=1e-4)
    alone = text(model, one, [["liver"], ["liver"]])
    torch.testing.assert_close(alone[0, 0], vectors[0, 0], atol=1e-4, rtol=1e-4)  # left padding changes nothing
    vectors.sum().backward()
    assert text.seg.grad is not None
    with pytest.raises(ValueError, match='text="language" needs a model with a language model'):
        LanguagePrompt(vol3d.VolumeLM(encoder()), 24)


# --- asking -------------------------------------------------------------------------------------------------


def batch_of(count=4) -> Batch:
    return collate([world.study(number) for number in range(count)])


def test_truth_and_simulated_prompts_agree():
    batch = batch_of(8)
    asks = [asks_of(batch, row) for row in range(8)]
    truth = truth_of(batch, asks)
    for row, wanted in enumerate(asks):
        for place, ask in enumerate(wanted):
            assert ask.present == bool(truth[row, place].any()) == bool((batch.finding_mask[row] == ask.label).any())
    prompts = simulate(Prompts(text=torch.zeros(8, 2, 4)), truth, batch.affine, 1.0)
    shown = (prompts.point_labels[..., 0] == 1) | prompts.boxes.isfinite().all(-1)
    assert torch.equal(shown, truth.flatten(2).any(-1)), "what is absent cannot be shown"
    clicked = (prompts.point_labels[..., 0] == 1).nonzero().tolist()
    assert clicked
    for row, place in clicked:
        voxel = prompts.points[row, place, 0].round().long()
        assert truth[row, place][tuple(voxel)] == 1


def test_a_correction_clicks_where_the_mask_is_wrong():
    batch = batch_of(8)
    truth = truth_of(batch, [asks_of(batch, row) for row in range(8)])
    some = truth.flatten(2).any(-1)
    wrong = torch.full_like(truth, -5.0)  # nothing found: the click lies inside the truth
    again = correct(Prompts(text=torch.zeros(8, 2, 4)), wrong, truth, batch.affine)
    assert torch.equal(again.point_labels[..., 0], torch.where(some, 1, -1))
    everything = correct(Prompts(text=torch.zeros(8, 2, 4)), -wrong, truth, batch.affine)
    assert (everything.point_labels == 0).all()
    right = correct(Prompts(text=torch.zeros(8, 2, 4)), truth * 10 - 5, truth, batch.affine)
    assert (right.point_labels == -1).all()
    none = torch.zeros_like(some)
    assert click_inside(truth > 0, batch.affine, none).abs().max() == 0, "no click is drawn where none is wanted"


def test_what_is_shown_must_lie_in_the_volume():
    batch = batch_of(1)
    assert show(batch, 2) is None
    shown = show(batch, 2, points=[(3, 4, 5)], box=(1, 1, 1, 4, 4, 4))
    assert shown.points.shape == (1, 2, 1, 3)
    with pytest.raises(ValueError, match=r"point \[99.0, 4.0, 5.0\] mm lies outside .* \[-0.5, -0.5, -0.5\] to \[15.5"):
        show(batch, 1, points=[(99, 4, 5)])
    with pytest.raises(ValueError, match=r"a point is \(3, 4\): give a list of \(x, y, z\)"):
        show(batch, 1, points=[(3, 4)])
    with pytest.raises(ValueError, match=r"the box is \(1, 1, 4, 4\): give \(x1, y1, z1, x2"):
        show(batch, 1, box=(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"box 'box' from \[40.0, .* lies outside the volume, which spans \[-0.5"):
        show(batch, 1, box=(40, 1, 1, 44, 4, 4))
    with pytest.raises(ValueError, match=r"runs from \[4.0, 1.0, 1.0\] to \[1.0, 4.0, 4.0\] mm: give the lower corner"):
        show(batch, 1, box=(4, 1, 1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"mask is \(4, 4, 4\), the grid is \(16, 16, 8\)"):
        show(batch, 1, mask=torch.zeros(4, 4, 4))


def test_a_label_without_a_name_is_refused():
    sample = world.study(1)
    odd = replace(sample, finding_mask=sample.finding_mask * 0 + 7)
    with pytest.raises(ValueError, match=r"study 's1': its mask holds label 7, finding_labels names \[1, 2\]"):
        asks_of(collate([odd]), 0)


# --- losses and runs ----------------------------------------------------------------------------------------


def test_dice_by_hand_and_empty_truths():
    target = torch.zeros(4, 4, 4)
    target[:2] = 1
    sure = torch.where(target > 0, 20.0, -20.0)
    assert dice_loss(sure, target).item() == pytest.approx(0, abs=1e-6)
    half = torch.where(torch.arange(4)[:, None, None] < 1, 20.0, -20.0).expand(4, 4, 4)  # 16 of the 32
    assert dice_loss(half, target).item() == pytest.approx(1 - (2 * 16 + 1) / (16 + 32 + 1), abs=1e-6)
    nothing = torch.full((4, 4, 4), -20.0)
    assert dice_loss(nothing, target * 0).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(half, target * 0).item() == pytest.approx(1 - 1 / 17, abs=1e-6)
    assert mask_loss(nothing, target * 0).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_that_is_written_out_is_the_sum_of_its_parts_and_so_is_its_gradient():
    logits = torch.randn(2, 3, 5, 4, 3, requires_grad=True)
    target = (torch.rand(2, 3, 5, 4, 3) > 0.7).float()
    target[0, 0] = 0
    probability, inside = logits.sigmoid().flatten(2), target.flatten(2)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(2)
    dice = 1 - (2 * (probability * inside).sum(2) + 1) / (probability.sum(2) + inside.sum(2) + 1)
    dice = dice * torch.where(inside.any(2), 1.0, 0.3)
    parts = dice + each.mean(2) + 0.2 * (each * inside).sum(2) / inside.sum(2).clamp_min(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # sums over voxels stay in 32 bits
        ours = mask_loss(logits, target, empty_dice=0.3, inside_weight=0.2)
    torch.testing.assert_close(ours, parts)
    weights = torch.rand_like(parts)
    gradients = [torch.autograd.grad((loss * weights).sum(), logits)[0] for loss in (ours, parts)]
    torch.testing.assert_close(*gradients)


def test_something_small_that_is_sunk_far_below_is_still_pulled_up():
    target = torch.zeros(1, 1, 16, 16, 16)
    target[0, 0, 8, 8, 8] = 1
    pulls = []
    for weight in (0.0, 0.1):
        logits = torch.full((1, 1, 16, 16, 16), -14.0, requires_grad=True)
        mask_loss(logits, target, inside_weight=weight).sum().backward()
        pulls.append(-logits.grad[0, 0, 8, 8, 8].item())
    assert pulls[0] < 1e-3 < 0.09 < pulls[1]


def test_an_empty_truth_may_be_left_to_the_presence_logit():
    some = torch.full((4, 4, 4), -20.0)
    some[0, 0, 0] = 20.0
    full, little = (mask_loss(some, some * 0, empty_dice=weight).item() for weight in (1.0, 0.1))
    cross_entropy = 20 / 64
    assert full == pytest.approx(0.5 + cross_entropy, abs=1e-4)
    assert little == pytest.approx(0.05 + cross_entropy, abs=1e-4)


def test_dice_equals_monai():
    from monai.losses import DiceLoss

    logits, target = torch.randn(3, 1, 6, 5, 4), (torch.rand(3, 1, 6, 5, 4) > 0.7).float()
    peer = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0, reduction="none")(logits, target).flatten()
    torch.testing.assert_close(dice_loss(logits, target).flatten(), peer)


def test_deep_supervision_keeps_what_is_smaller_than_a_coarse_cell():
    target = torch.zeros(1, 1, 8, 8, 8)
    target[0, 0, 3, 3, 3] = 1
    fine, coarse = torch.full((1, 1, 8, 8, 8), -6.0), torch.full((1, 1, 2, 2, 2), -6.0, requires_grad=True)
    deep_mask_loss([fine, coarse], target).sum().backward()
    assert coarse.grad[0, 0, 0, 0, 0] < 0, "the cell with the voxel is pulled up"
    assert (coarse.grad.flatten()[1:] > 0).all()


def test_boxes_that_agree_cost_nothing_and_far_ones_more():
    one = torch.tensor([[0.1, 0.1, 0.1, 0.4, 0.4, 0.4]])
    near, far = one + 0.1, one + 0.5
    assert box_loss(one, one).item() == pytest.approx(0, abs=1e-6)
    assert 0 < box_loss(near, one).item() < box_loss(far, one).item()
    # 3-D by hand: cubes of side 1 shifted by a half in x: IoU 1/3, the hull is filled.
    a, b = torch.tensor([[0.0, 0, 0, 1, 1, 1]]), torch.tensor([[0.5, 0, 0, 1.5, 1, 1]])
    assert generalised_iou(a, b).item() == pytest.approx(1 / 3)
    assert generalised_iou(a, a + torch.tensor([3.0, 0, 0, 3, 0, 0])).item() == pytest.approx(-0.5)
    mm = box_loss(one * 200, near * 200, (200.0, 200.0, 200.0))
    torch.testing.assert_close(mm, box_loss(one, near))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_runs_give_the_mask_back(seed, share):
    mask = np.random.default_rng(seed).random((3, 4, 5)) < share
    assert np.array_equal(decode_runs(encode_runs(mask), mask.shape), mask)


def test_runs_of_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"runs reach voxel 12, a mask of \(2, 2, 2\) has 8"):
        decode_runs([10, 2], (2, 2, 2))
    with pytest.raises(ValueError, match="3 numbers are no runs"):
        decode_runs([1, 2, 3], (2, 2, 2))
