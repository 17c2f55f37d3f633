"""Segmentation by prompts: learns from masks, needs the volume, answers by text, click, box and correction, says when
nothing is there, and slides over volumes larger than its grid."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import world
from monai.data import MetaTensor

import vol3d
from vol3d.data.batch import Batch, collate
from vol3d.data.study import Study
from vol3d.model.inference import TrainedModel
from vol3d.model.interfaces import Evidence
from vol3d.model.pretrained import save
from vol3d.model.sliding import Windows, segment_sliding, stitch
from vol3d.tasks import PromptSegmentation
from vol3d.volume.grid import Grid
from vol3d.volume.runs import decode_runs

LEFT, RIGHT = world.FINDINGS
SMALL = {"dim": 32, "depth": 1, "num_heads": 2, "pixel_dim": 8}


def model(**settings) -> vol3d.VolumeLM:
    torch.manual_seed(0)
    sizes = {"embed_dim": 48, "depth": 1, "num_heads": 2, "patch_size": (4, 4, 2), "stem": "conv"}
    return vol3d.VolumeLM(vol3d.encoders.create("vit3d-tiny", **sizes), **settings)


@cache
def sample(number: int) -> world.Sample:
    """The toy world's boxes as findings, and walls beside them as organs."""
    made = world.study(number)
    organs = torch.zeros(made.hu.shape[1:], dtype=torch.int16)
    organs[:2], organs[14:] = 1, 2
    row = replace(made.study, mask=Path("m"), finding_mask=Path("f"), mask_labels={"left wall": 1, "right wall": 2})
    return replace(made, study=row, mask=organs)


def batch(numbers: range, *, shuffled: bool = False) -> Batch:
    made = collate([sample(number) for number in numbers])
    order = torch.arange(len(made)).roll(1) if shuffled else torch.arange(len(made))
    return replace(made, image=made.image[order].float() / 300)


@cache
@torch.enable_grad()
def learnt(*, shuffled: bool = False) -> tuple[vol3d.VolumeLM, PromptSegmentation]:
    lm = model()
    task = PromptSegmentation(lm, prompts=4, interactive=0.3, **SMALL)
    optimizer = torch.optim.AdamW([*lm.parameters(), *task.parameters()], lr=3e-3)
    for step in range(150):
        part = batch(range(4 * step % 128, 4 * step % 128 + 4), shuffled=shuffled)
        loss = task.loss(lm, lm.encode(part.image, part.affine), part).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return lm.eval(), task.eval()


def evidence(lm: vol3d.VolumeLM, task: PromptSegmentation, numbers: range) -> Evidence:
    part = batch(numbers)
    with torch.no_grad():
        rows = task.predict(lm, lm.encode(part.image, part.affine), part)
    found = {study.study: row for study, row in zip(part.studies, rows, strict=True)}
    by_name = {sample(number).study.study: sample(number) for number in numbers}
    return Evidence(part.studies, found, sample=lambda study: by_name[study.study], replicates=20)


def test_masks_are_learnt_and_the_volume_is_looked_at():
    scores = learnt_scores = learnt()[1].score(evidence(*learnt(), range(500, 540)))["segmentation"]
    assert scores["finding_dice"]["value"] > 0.6
    assert scores["organ_dice"]["value"] > 0.9
    assert scores["absent_silent"]["value"] > 0.8
    assert scores["baselines"]["blind"]["finding_dice"] < 0.4
    assert scores["dice"]["low"] <= scores["dice"]["value"] <= scores["dice"]["high"]
    assert scores["per_label"][LEFT]["support"] + scores["per_label"][RIGHT]["support"] < 80
    lm, task = learnt(shuffled=True)
    scores = task.score(evidence(lm, task, range(500, 540)))["segmentation"]
    # The boxes of the toy world lie so close that a mean box already overlaps by 0.4; it must miss the bar above.
    assert scores["finding_dice"]["value"] < 0.5 < 0.6 < learnt_scores["finding_dice"]["value"]


def test_a_prediction_says_volume_and_runs_of_every_label():
    found = evidence(*learnt(), range(500, 502)).predictions["s500"]["segmentation"]
    assert set(found) == {LEFT, RIGHT, "left wall", "right wall"}
    wall = found["left wall"]
    mask = decode_runs(wall["runs"], (16, 16, 8))
    assert wall["volume_ml"] == pytest.approx(mask.sum() / 1000, abs=0.01)
    assert wall["present"] > 0.9


@torch.no_grad()
def dice_of(prompts: list[str], **shown) -> list[float]:
    """Mean Dice over unseen studies with a finding on the left, shown in the given way."""
    lm, task = learnt()
    scores = []
    for number in range(600, 640):
        part = batch(range(number, number + 1))
        truth = part.finding_mask[0] == 1
        if not truth.any():
            continue
        options = {name: make(truth) for name, make in shown.items()}
        mask = task.segment(lm, lm.encode(part.image, part.affine), part, prompts, **options)[0, 0]
        scores.append(2 * int((mask & truth).sum()) / int(mask.sum() + truth.sum()))
    return [float(np.mean(scores)), len(scores)]


def centre(truth: torch.Tensor) -> list[list[float]]:
    return [truth.nonzero().float().mean(0).round().tolist()]


def around(truth: torch.Tensor) -> list[float]:
    voxels = truth.nonzero()
    return [*(voxels.amin(0) - 0.5).tolist(), *(voxels.amax(0) + 0.5).tolist()]


def test_referring_and_interactive_prompts_find_the_same_thing():
    by_text, studies = dice_of(["pleural fluid on the left"])
    assert studies > 10
    assert by_text > 0.6
    assert dice_of([""], points=centre)[0] > 0.5
    assert dice_of([""], box=around)[0] > 0.5
    assert dice_of([LEFT], points=centre, box=around)[0] > 0.6


@torch.no_grad()
def test_a_second_round_with_the_mask_so_far_and_a_correcting_click_does_not_lose_what_was_found():
    lm, task = learnt()
    rounds: list[list[float]] = [[], []]
    for number in range(600, 640):
        part = batch(range(number, number + 1))
        truth = part.finding_mask[0] == 1
        if not truth.any():
            continue
        features = lm.encode(part.image, part.affine)
        first = task.segment(lm, features, part, [""], points=centre(truth))[0, 0]
        missing, excess = truth & ~first, first & ~truth
        more = "points" if missing.sum() >= excess.sum() else "negative_points"
        wrong = (missing if more == "points" else excess).nonzero().tolist()[:1]
        shown = {more: wrong}
        second = task.segment(lm, features, part, [LEFT], mask=first, **shown)[0, 0]
        for mask, scores in zip((first, second), rounds, strict=True):
            scores.append(2 * int((mask & truth).sum()) / int(mask.sum() + truth.sum()))
    assert float(np.mean(rounds[1])) > max(0.7, float(np.mean(rounds[0])) - 0.02)


def test_many_prompts_in_one_forward_give_what_each_alone_gives():
    lm, task = learnt()
    part = batch(range(600, 603))
    features, names = lm.encode(part.image, part.affine), [LEFT, "right wall", RIGHT]
    together = task.segment(lm, features, part, names * 4)  # more than one chunk
    for place, name in enumerate(names * 4):
        assert torch.equal(together[:, place], task.segment(lm, features, part, [name])[:, 0])


def test_studies_without_masks_cost_nothing():
    lm = model()
    task = PromptSegmentation(lm, interactive=0.0, **SMALL)
    bare = collate([replace(sample(i), mask=None, finding_mask=None) for i in range(2)])
    bare = replace(bare, image=bare.image.float() / 300)
    output = task.loss(lm, lm.encode(bare.image, bare.affine), bare)
    assert (output.loss, output.count) == (None, 0)
    mixed = collate([sample(0), replace(sample(1), mask=None, finding_mask=None)])
    mixed = replace(mixed, image=mixed.image.float() / 300)
    torch.manual_seed(1)
    output = task.loss(lm, lm.encode(mixed.image, mixed.affine), mixed)
    alone = batch(range(0, 1))
    torch.manual_seed(1)
    assert output.count == 1
    torch.testing.assert_close(output.loss, task.loss(lm, lm.encode(alone.image, alone.affine), alone).loss)
    assert task.score(Evidence([study(mask=None)], {})) == {}


def study(**fields) -> Study:
    return replace(sample(0).study, finding_mask=None, **fields)


def test_nothing_asked_is_refused():
    lm, task = learnt()
    part = batch(range(600, 601))
    features = lm.encode(part.image, part.affine)
    with pytest.raises(ValueError, match=r"prompts are \[''\] and nothing is shown"):
        task.segment(lm, features, part, [" "])
    with pytest.raises(ValueError, match=r"point \[50.0, 1.0, 1.0\] mm lies outside the volume, which spans"):
        task.segment(lm, features, part, ["left wall"], points=[(50, 1, 1)])


def test_a_label_that_was_not_predicted_is_told():
    lm, task = learnt()
    told = evidence(lm, task, range(500, 502))
    del told.predictions["s500"]["segmentation"][LEFT]
    with pytest.raises(ValueError, match=f"study 's500': '{LEFT}' is in its masks and was not predicted"):
        task.score(told)


def test_the_language_model_may_read_the_phrase():
    language = vol3d.LanguageModel.scratch(["Outline the left wall."], embed_dim=32, depth=1, num_heads=2)
    lm = model(projector=partial(vol3d.PerceiverProjector, num_latents=4, num_heads=2), language=language)
    task = PromptSegmentation(lm, text="language", prompts=2, interactive=0.0, **SMALL)
    assert task.uses == {"scales", "visual"}
    part = batch(range(0, 2))
    features = lm.encode(part.image, part.affine)
    features.visual = lm.project(features)
    task.loss(lm, features, part).loss.backward()
    assert all(parameter.grad is not None for parameter in lm.projector.parameters())
    assert task.text.seg.grad.abs().sum() > 0
    with pytest.raises(ValueError, match='text="language" needs a model with a language model'):
        PromptSegmentation(model(), text="language", **SMALL)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("unet3d-base", {"width": 8, "blocks": (1, 1, 1)}),
        ("vit3d-tiny", {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": (4, 4, 2)}),
    ],
)
def test_a_second_encoder_for_masks_alone(name: str, sizes: dict, tmp_path):
    """It is what the masks are read from and what learns; it is saved, and comes back, with the task."""
    lm = model()
    task = PromptSegmentation(lm, interactive=0.0, encoder=vol3d.encoders.create(name, **sizes), **SMALL)
    part = batch(range(8))
    with torch.enable_grad():
        task.loss(lm, lm.encode(part.image, part.affine), part).loss.backward()
    assert any(parameter.grad is not None for parameter in task.encoder.parameters())
    assert all(parameter.grad is None for parameter in lm.encoder.parameters())
    assert task.uses == set()
    grid = trained().grid
    save(tmp_path / "model", lm, {"masks": task}, grid)
    again = vol3d.load(tmp_path / "model")
    lm.eval(), task.eval()
    with torch.no_grad():
        told = [
            net.logits(shared, shared.encode(part.image), part, [LEFT, "left wall"])
            for shared, net in ((lm, task), (again.model, again.tasks["masks"]))
        ]
    assert torch.equal(*told)


# --- from a file to a file ----------------------------------------------------------------------------------


def written(folder: Path, number: int, codes: str, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Path:
    """The toy study as a NIfTI file whose axes run towards `codes`."""
    import nibabel as nib

    image = nib.Nifti1Image(with_air(sample(number).hu[0]).numpy(), np.diag([*spacing, 1.0]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(("R", "A", "S")), nib.orientations.axcodes2ornt(tuple(codes))
    )
    path = folder / f"{codes}.nii.gz"
    nib.save(image.as_reoriented(turn), path)
    return path


def with_air(hu: torch.Tensor) -> torch.Tensor:
    """A line of air at an edge, by which a reader knows HU; the window hides it."""
    hu = hu.clone()
    hu[0, 0] = -1000
    return hu


def trained() -> TrainedModel:
    grid = vol3d.Grid(spacing=(1, 1, 1), shape=(16, 16, 8), window=(-300, 300), out_range=(-1, 1), name="toy")
    return TrainedModel(*(lambda lm, task: (lm, {"masks": task}))(*learnt()), grid)


def test_a_patient_stored_in_another_orientation_gets_the_same_mask_on_the_files_own_grid(tmp_path):
    import nibabel as nib

    number = next(n for n in range(600, 640) if LEFT in sample(n).study.report)
    masks = {codes: trained().segment(written(tmp_path, number, codes), LEFT) for codes in ("RAS", "LPS", "LAS")}
    for codes, mask in masks.items():
        file = nib.load(tmp_path / f"{codes}.nii.gz")
        assert tuple(mask.shape[1:]) == file.shape
        assert np.allclose(mask.affine, file.affine)
    assert masks["RAS"].any()
    assert torch.equal(masks["LPS"].as_tensor().flip(1, 2), masks["RAS"].as_tensor())
    assert torch.equal(masks["LAS"].as_tensor().flip(1), masks["RAS"].as_tensor())


def test_an_earlier_mask_is_shown_where_it_lies_whatever_grid_the_file_has(tmp_path, monkeypatch):
    """A cube on the file's own grid, of the same shape as the model's but the other way round."""
    torch.manual_seed(0)
    lm = vol3d.VolumeLM(vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=1, num_heads=2, patch_size=(4, 4, 2)))
    grid = vol3d.Grid(spacing=(1, 1, 1), shape=(16, 16, 8), window=(-300, 300), name="toy")
    model = TrainedModel(lm, {"masks": PromptSegmentation(lm, dim=32, depth=1, num_heads=2).eval()}, grid)
    segment, shown = PromptSegmentation.segment, []

    def listens(self, *args, **options):
        shown.append(options.get("mask"))
        return segment(self, *args, **options)

    monkeypatch.setattr(PromptSegmentation, "segment", listens)
    cube = torch.zeros(1, 16, 16, 8, dtype=torch.uint8)
    cube[:, 2:6, 3:8, 1:4] = 1
    for codes in ("RAS", "LPS"):
        volume = vol3d.read(written(tmp_path, 0, codes))
        earlier = grid.inverse(cube, like=volume)  # what `segment` gives
        for mask in (earlier, earlier[0], grid.resample_mask(earlier, like_volume=volume)[0]):
            model.segment(volume, "left wall", mask=mask)
            assert torch.equal(shown[-1].bool(), cube[0].bool()), codes


def test_what_is_not_there_comes_back_empty(tmp_path):
    number = next(n for n in range(600, 640) if LEFT not in sample(n).study.report)
    assert not trained().segment(written(tmp_path, number, "RAS"), LEFT).any()


# --- windows ------------------------------------------------------------------------------------------------


def test_windows_lie_as_monai_lays_them():
    from monai.data.utils import dense_patch_slices

    for shape, size, overlap in (((40, 33, 20), (16, 16, 8), 0.5), ((16, 17, 8), (16, 16, 8), 0.25)):
        windows = Windows(shape, size, overlap)
        step = tuple(int(n * (1 - overlap)) for n in size)
        ours = [window for x in windows.starts(0) for window in windows.row(x)]
        assert ours == list(dense_patch_slices(shape, size, step))
    assert len(Windows((512, 512, 200), (160, 160, 104))) == 108
    with pytest.raises(ValueError, match=r"window is 16 voxels along x, the volume 12: pad"):
        Windows((12, 16, 8), (16, 16, 8))


def test_stitching_is_the_weighted_mean_over_all_windows_and_monais():
    from monai.inferers import sliding_window_inference

    torch.manual_seed(0)
    volume, windows = torch.randn(1, 3, 41, 30, 19), Windows((41, 30, 19), (16, 16, 8))
    net = torch.nn.Conv3d(3, 5, 3, padding=1).eval()
    x, y, z = windows.weights()
    weight = x[:, None, None] * y[:, None] * z
    with torch.no_grad():
        ours = torch.cat(
            [
                slab.clone()
                for _, slab in stitch(windows, lambda window: net(volume[(slice(None), slice(None), *window)])[0], 5)
            ],
            dim=1,
        )
        peer = sliding_window_inference(volume, (16, 16, 8), 1, net, overlap=0.5, roi_weight_map=weight)[0]
    torch.testing.assert_close(ours, peer, atol=1e-4, rtol=1e-4)
    total, count = torch.zeros(5, 41, 30, 19), torch.zeros(41, 30, 19)
    for start in windows.starts(0):
        for window in windows.row(start):
            with torch.no_grad():
                total[(slice(None), *window)] += net(volume[(slice(None), slice(None), *window)])[0] * weight
            count[window] += weight
    torch.testing.assert_close(ours, total / count, atol=1e-4, rtol=1e-4)


def test_each_window_is_encoded_once_and_prompts_together_are_prompts_alone(tmp_path):
    made = trained()
    wide = torch.cat([sample(number).hu[0] for number in (600, 601)], dim=1)
    volume = vol3d.read(_nifti(tmp_path, wide))
    calls: list[int] = []
    hook = made.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    masks, grid = segment_sliding(made.model, made.tasks["masks"], made.grid, volume, [LEFT, "left wall", RIGHT])
    hook.remove()
    assert len(calls) == len(Windows((16, 32, 8), (16, 16, 8))) == 3
    assert masks.shape == (3, 16, 32, 8)
    for place, prompt in enumerate([LEFT, "left wall", RIGHT]):
        alone, _ = segment_sliding(made.model, made.tasks["masks"], made.grid, volume, [prompt])
        assert torch.equal(alone[0], masks[place])
    assert tuple(grid.inverse(masks, like=volume).shape) == (3, 16, 32, 8)
    wall = torch.zeros(16, 32, 8, dtype=torch.bool)
    wall[:2] = True
    assert 2 * int((masks[1] & wall).sum()) / int(masks[1].sum() + wall.sum()) > 0.9


def test_a_volume_of_one_window_is_segmented_as_without_sliding(tmp_path):
    made = trained()
    volume = vol3d.read(written(tmp_path, 600, "RAS"))
    masks, _ = segment_sliding(made.model, made.tasks["masks"], made.grid, volume, ["left wall"])
    assert torch.equal(masks[0], made.segment(volume, "left wall")[0].as_tensor().bool())
    free = vol3d.Grid(shape=(16, 16, 8), name="free")
    with pytest.raises(ValueError, match=r"grid 'free' has spacing None and shape \(16, 16, 8\): windows need both"):
        segment_sliding(made.model, made.tasks["masks"], free, volume, ["left wall"])


def _nifti(folder: Path, hu: torch.Tensor) -> Path:
    import nibabel as nib

    nib.save(nib.Nifti1Image(with_air(hu).numpy(), np.eye(4)), folder / "wide.nii.gz")
    return folder / "wide.nii.gz"


def _windows_shown(grid: Grid, volume: MetaTensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Image and affine of each window; the models are stand-ins that keep what they are shown."""
    shown = []
    model = SimpleNamespace(device=torch.device("cpu"), encode=lambda *seen: shown.append([one[0] for one in seen]))
    task = SimpleNamespace(logits=lambda model, features, batch, prompts, presence: torch.zeros(1, 1, *grid.shape))
    masks, whole = segment_sliding(model, task, grid, volume, ["liver"])
    assert whole.inverse(masks, like=volume).shape == volume.shape
    return shown


def test_windows_over_what_is_no_ct_are_padded_with_its_lowest_value() -> None:
    values = torch.arange(300.0, 300 + 6 * 8 * 8).reshape(1, 6, 8, 8)
    grid = Grid(spacing=(1, 1, 1), shape=(8, 8, 8), window=(0, 1000))
    for modality, outside in (("MR", 0.3), ("CT", 0.0)):
        volume = MetaTensor(values, affine=torch.eye(4, dtype=torch.float64), meta={"modality": modality})
        ((image, _),) = _windows_shown(grid, volume)
        assert image[0, 7].unique().tolist() == pytest.approx([outside])


def test_a_volume_smaller_than_a_window_is_shown_as_without_sliding() -> None:
    """Filled up on both sides, as the grid does in training."""
    affine = torch.diag(torch.tensor([2.0, 1, 1, 1], dtype=torch.float64))
    volume = MetaTensor(torch.arange(6.0 * 9 * 5).reshape(1, 6, 9, 5), affine=affine, meta={"modality": "CT"})
    grid = Grid(spacing=(1, 1, 1), shape=(16, 16, 8), window=(0, 1000))
    ((image, place),) = _windows_shown(grid, volume)
    alone = grid(volume)
    torch.testing.assert_close(image, alone.as_tensor())
    torch.testing.assert_close(place, alone.affine)


@pytest.mark.parametrize("rule", ["minmax", "percentile", "zscore"])
def test_a_rule_of_the_window_asks_the_whole_volume(rule: str) -> None:
    """A window over the air of an MR scan is dark, and not as bright as one over the body."""
    torch.manual_seed(0)
    values = torch.rand(1, 24, 8, 8).mul(1000).round()
    values[:, :12] /= 100
    volume = MetaTensor(values.round(), affine=torch.eye(4, dtype=torch.float64), meta={"modality": "MR"})
    grid = Grid(spacing=(1, 1, 1), shape=(8, 8, 8), window=rule)
    shown = _windows_shown(grid, volume)
    whole = grid.window_hu(volume.as_tensor())
    for image, place in shown:
        first = int(place[0, 3])
        torch.testing.assert_close(image, whole[:, first : first + 8])
    assert shown[0][0].mean() < shown[-1][0].mean() - 0.3
