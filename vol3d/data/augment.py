"""Augmentation on the device, a whole batch at a time, that never lets image and words disagree.

A report says left and right, so a mirrored volume needs a mirrored report. Here a flip is off by default, and where
it is asked for, the words, label names and boxes turn with the voxels. MONAI's and torchio's transforms know of no
report; their results are looked at, and where the body came out mirrored, its study's row is mirrored too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vol3d.data.batch import Batch
from vol3d.data.boxes import keep_in_view
from vol3d.data.mirror import mirror_study, names_a_side
from vol3d.data.study import Study

Moved = tuple[dict[str, Tensor], dict[str, NDArray[np.float64]]]
"""What a transform made of a study's volumes, and for each the matrix new voxel index → old voxel index."""
_PROBES = 24
"""Voxels along each axis that are asked where they came from."""
_SAME = 1e-3
"""Voxels that an image and its mask may lie apart."""


@dataclass(frozen=True)
class Augment:
    """Random changes of a windowed batch, drawn anew for each study; the same seed and step give the same ones.

    Masks and affines follow the voxels. Boxes and reports stay true: they are in mm and words, and the affine says
    where each voxel now lies. A box that leaves the view, by more than half of what was in it, is left out of the
    study's row at this visit. Only `flip` changes the patient, and with it the study's words, label names and boxes.

    Args:
        rotate: up to so many degrees about each axis.
        zoom: up to so much larger or smaller (0.1: 0.9 to 1.1). Sizes in a report stay the patient's, and a network
            sees voxels: keep it small where millimetres are to be written.
        shift: up to so many voxels along each axis.
        brightness: up to so much added, in units of the window (0.1 of ±1000 HU is 200 HU).
        contrast: up to so much stronger or weaker about the window's middle.
        noise: standard deviation of Gaussian noise, up to so much, in units of the window.
        flip: probability of a left–right flip. Anatomy is mirrored (the liver lies left), so keep it at 0 unless
            the task does not know sides. A study with codes that may name a side is never flipped.
        seed: of all draws.

    Raises:
        ValueError: a negative amount, or a probability above 1.

    Example:
        >>> augment = Augment(rotate=10, zoom=0.1, noise=0.02)
    """

    rotate: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    flip: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rotate", "zoom", "shift", "brightness", "contrast", "noise", "flip"):
            value = getattr(self, name)
            if value < 0 or (name in ("zoom", "contrast", "flip") and value > 1):
                raise ValueError(f"{name} is {value}: an amount from 0{' to 1' if name == 'flip' else ''}, 0 is off")

    def __call__(self, batch: Batch, step: int = 0) -> Batch:
        """The augmented batch.

        Shape:
            image (batch, channels, x, y, z) float, as windowed; the same out.
        """
        if not batch.image.is_floating_point():
            raise ValueError(f"image is {batch.image.dtype}: augment after the window, when it is float")
        generator = torch.Generator().manual_seed(hash((self.seed, step)) % 2**63)
        draw = _Draws(len(batch), generator)
        if self.flip:
            batch = _flip(batch, draw.unit() < self.flip)
        if self.rotate or self.zoom or self.shift:
            batch = self._move(batch, draw)
        return replace(batch, image=self._shade(batch.image, batch.value_range, draw))

    def _move(self, batch: Batch, draw: _Draws) -> Batch:
        """Rotation, zoom and shift about the grid's centre; linear for the image, nearest for masks."""
        spacing = batch.affine[:, :3, :3].norm(dim=1).cpu()
        turn = _rotation(torch.deg2rad(self.rotate * draw.around_zero(3)))
        zoom = 1 + self.zoom * draw.around_zero(1)[:, :, None]
        # The turn is one in mm, so that voxels that are not cubes do not shear the patient.
        linear = torch.diag_embed(1 / spacing) @ turn @ torch.diag_embed(spacing) / zoom
        shape = torch.tensor(batch.image.shape[2:], dtype=torch.float64)
        centre = ((shape - 1) / 2).expand(len(batch), 3)
        offset = centre + self.shift * draw.around_zero(3) - (linear @ centre[:, :, None])[:, :, 0]
        source = torch.eye(4, dtype=torch.float64).repeat(len(batch), 1, 1)  # new voxel index → old voxel index
        source[:, :3, :3], source[:, :3, 3] = linear, offset
        places = _sampling_grid(source, batch.image)
        old, size = batch.affine.cpu(), tuple(batch.image.shape[2:])
        moves = zip(batch.studies, old.numpy(), (old @ source).numpy(), strict=True)
        return replace(
            batch,
            studies=[keep_in_view(study, before, after, size) for study, before, after in moves],
            image=_sample(batch.image, places, "bilinear"),
            affine=batch.affine @ source.to(batch.affine.device),
            mask=_move_mask(batch.mask, places),
            finding_mask=_move_mask(batch.finding_mask, places),
        )

    def _shade(self, image: Tensor, value_range: tuple[float, float], draw: _Draws) -> Tensor:
        middle, width = sum(value_range) / 2, value_range[1] - value_range[0]
        if self.brightness or self.contrast:
            gain, level = (
                amount[:, :, None, None, None].to(image) for amount in (draw.around_zero(1), draw.around_zero(1))
            )
            image = (image - middle) * (1 + self.contrast * gain) + middle + self.brightness * width * level
        if self.noise:
            strength = (self.noise * width * draw.unit())[:, None, None, None, None].to(image)
            generator = torch.Generator(image.device).manual_seed(draw.seed())
            image = image + strength * torch.randn(
                image.shape, generator=generator, device=image.device, dtype=image.dtype
            )
        return image


class _Draws:
    """Numbers for each study of a batch, from one stream on the CPU: the same on every device."""

    def __init__(self, studies: int, generator: torch.Generator) -> None:
        self.studies = studies
        self.generator = generator

    def unit(self) -> Tensor:
        """(studies,) from 0 to 1."""
        return torch.rand(self.studies, generator=self.generator, dtype=torch.float64)

    def around_zero(self, count: int) -> Tensor:
        """(studies, count) from −1 to 1."""
        return 2 * torch.rand(self.studies, count, generator=self.generator, dtype=torch.float64) - 1

    def seed(self) -> int:
        return int(torch.randint(2**62, (), generator=self.generator))


def _rotation(angles: Tensor) -> Tensor:
    """(studies, 3) angles about x, y, z in radians → (studies, 3, 3)."""
    turn = torch.eye(3, dtype=torch.float64).expand(len(angles), 3, 3)
    for axis, (first, second) in enumerate(((1, 2), (2, 0), (0, 1))):
        one = torch.eye(3, dtype=torch.float64).repeat(len(angles), 1, 1)
        cosine, sine = angles[:, axis].cos(), angles[:, axis].sin()
        one[:, first, first], one[:, second, second] = cosine, cosine
        one[:, first, second], one[:, second, first] = -sine, sine
        turn = turn @ one
    return turn


def _sampling_grid(source: Tensor, image: Tensor) -> Tensor:
    """new → old voxel index as torch's grid: (batch, x, y, z, 3), −1 to 1, last axis first."""
    size = torch.tensor(image.shape[2:], dtype=torch.float64)
    scale = 2 / (size - 1).clamp(min=1)
    axes = [torch.arange(int(n), dtype=torch.float32, device=image.device) for n in size]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(1, -1, 3)
    linear = (source[:, :3, :3] * scale[:, None]).to(image.device, torch.float32)
    offset = (source[:, :3, 3] * scale - 1).to(image.device, torch.float32)
    places = index @ linear.transpose(1, 2) + offset[:, None]
    return places.flip(-1).reshape(len(source), *image.shape[2:], 3)


def _sample(values: Tensor, places: Tensor, mode: str) -> Tensor:
    sampled = torch.nn.functional.grid_sample(
        values.float(), places, mode=mode, padding_mode="border", align_corners=True
    )
    return sampled.to(values.dtype)


def _move_mask(mask: Tensor | None, places: Tensor) -> Tensor | None:
    """Nearest voxel; the border is repeated, so that "unknown" (all −1) stays so."""
    return None if mask is None else _sample(mask[:, None], places, "nearest")[:, 0]


def _flip(batch: Batch, wanted: Tensor) -> Batch:
    rows = [row for row, study in enumerate(batch.studies) if bool(wanted[row]) and not names_a_side(study)]
    if not rows:
        return batch
    studies = list(batch.studies)
    width = batch.image.shape[2]
    for row in rows:
        studies[row] = mirror_study(studies[row], batch.affine[row].cpu().numpy(), width)

    def turned(values: Tensor, axis: int) -> Tensor:
        values = values.clone()
        values[rows] = values[rows].flip(axis)
        return values

    return replace(
        batch,
        studies=studies,
        image=turned(batch.image, 2),
        mask=None if batch.mask is None else turned(batch.mask, 1),
        finding_mask=None if batch.finding_mask is None else turned(batch.finding_mask, 1),
    )


class Transforms:
    """A transform of MONAI or torchio on each study of a windowed batch, as `VolumeData(augment=…)` takes it.

    Affines follow the voxels, and a box that leaves the view is left out as by `Augment`. A body that comes out
    mirrored (an odd number of flips, along whichever axes) gets its words, label names and boxes turned; a study with
    codes that may name a side gets its voxels turned back instead. An elastic transform moves the edges of boxes
    against the voxels by as much as it bends.

    Args:
        transform: a MONAI dictionary transform, which runs on the device, or a torchio transform, which runs on the
            CPU. What moves voxels moves the masks too: a MONAI one needs the keys "image", "mask", "finding_mask",
            with `allow_missing_keys=True`, since not every batch has all, and where it interpolates
            `mode=("bilinear", "nearest", "nearest")`.
        seed: the same seed and step give the same result.

    Example:
        >>> from monai.transforms import RandFlipd
        >>> keys = ("image", "mask", "finding_mask")
        >>> augment = Transforms(RandFlipd(keys, prob=0.5, spatial_axis=0, allow_missing_keys=True))
    """

    def __init__(self, transform: Callable[[Any], Any], seed: int = 0) -> None:
        self.transform = transform
        self.seed = seed
        self._run = _torchio if type(transform).__module__.partition(".")[0] == "torchio" else _monai

    def __call__(self, batch: Batch, step: int = 0) -> Batch:
        """The augmented batch.

        Shape:
            image (batch, channels, x, y, z) float, as windowed; the same out.

        Raises:
            ValueError: the transform changed the shape, threw the affine away, moved the image and left a mask, or
                mixed a mask's labels.
        """
        if not batch.image.is_floating_point():
            raise ValueError(f"image is {batch.image.dtype}: augment after the window, when it is float")
        rows = [self._row(batch, row, step) for row in range(len(batch))]
        volumes, affines, studies = zip(*rows, strict=True)
        stacked = {name: torch.stack([each[name] for each in volumes]) for name in volumes[0]}
        masks = {name: stacked[name][:, 0] for name in ("mask", "finding_mask") if name in stacked}
        return replace(batch, studies=list(studies), image=stacked["image"], affine=torch.stack(affines), **masks)

    def _row(self, batch: Batch, row: int, step: int) -> tuple[dict[str, Tensor], Tensor, Study]:
        given = {"image": batch.image[row]}
        for name in ("mask", "finding_mask"):
            if (masks := getattr(batch, name)) is not None:
                given[name] = masks[row][None]
        study, affine = batch.studies[row], batch.affine[row].cpu().numpy()
        made, sources = self._seeded(given, affine, hash((self.seed, step, row)) % 2**32)
        for name, volume in made.items():
            if volume.shape != given[name].shape:
                raise ValueError(
                    f"study {study.study!r}: the transform made {name} {tuple(volume.shape)} of "
                    f"{tuple(given[name].shape)}: a batch needs one grid; add a crop or pad to its end"
                )
            unknown = name != "image" and bool((given[name] == -1).all())
            if name != "image" and not unknown and not torch.equal(volume, volume.round()):
                raise ValueError(
                    f"study {study.study!r}: the transform interpolated between the labels of {name}, and between 1 "
                    'and 3 lies another label: give it mode=("bilinear", "nearest", "nearest")'
                )
            made[name] = given[name] if unknown else volume.to(given[name])
        source = sources["image"]
        if apart := [name for name in sources if not np.allclose(sources[name], source, atol=_SAME)]:
            raise ValueError(
                f"study {study.study!r}: the transform moved image and {apart[0]} apart: give what moves voxels "
                'keys=("image", "mask", "finding_mask") and allow_missing_keys=True'
            )
        before, affine = affine, affine @ source
        study = keep_in_view(study, before, affine, tuple(batch.image.shape[2:]))
        if np.linalg.det(source[:3, :3]) < 0:
            width = batch.image.shape[2]
            # Described as a mirrored body on a grid that is none, as every grid of vol3d.
            affine = affine @ _mirror(width)
            if names_a_side(study):
                made = {name: volume.flip(1) for name, volume in made.items()}
            else:
                study = mirror_study(study, affine, width)
        return made, torch.from_numpy(affine).to(batch.affine), study

    def _seeded(self, given: dict[str, Tensor], affine: NDArray[np.float64], seed: int) -> Moved:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if hasattr(self.transform, "set_random_state"):
                self.transform.set_random_state(seed=seed)
            return self._run(self.transform, given, affine)


def _mirror(width: int) -> NDArray[np.float64]:
    """Voxel index → that of the other side."""
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = width - 1
    return flip


def _monai(transform: Callable[[Any], Any], given: dict[str, Tensor], affine: NDArray[np.float64]) -> Moved:
    """MONAI writes into the affine what it does to the voxels."""
    from monai.data import MetaTensor

    made = transform({k: MetaTensor(v.clone(), affine=torch.from_numpy(affine.copy())) for k, v in given.items()})
    for name in given:
        if not isinstance(made[name], MetaTensor):
            raise ValueError(
                f"the transform gave a plain tensor as {name}, so that nobody knows whether left is left: use MONAI's "
                "dictionary transforms with metadata (monai.data.set_track_meta(True))"
            )
    back = np.linalg.inv(affine)
    sources = {name: back @ made[name].affine.cpu().numpy().astype(np.float64) for name in given}
    return {name: made[name].as_subclass(Tensor) for name in given}, sources


def _torchio(transform: Callable[[Any], Any], given: dict[str, Tensor], affine: NDArray[np.float64]) -> Moved:
    """torchio moves voxels and leaves the affine, so a label map of voxel numbers travels along."""
    try:
        import torchio
    except ImportError as error:
        raise ImportError("torchio's transforms need torchio: pip install 'vol3d[torchio]'") from error

    shape = tuple(given["image"].shape[1:])
    number = torch.arange(1, int(np.prod(shape)) + 1, dtype=torch.int32).reshape(1, *shape)
    subject = torchio.Subject(
        image=torchio.ScalarImage(tensor=given["image"].cpu(), affine=affine),
        number=torchio.LabelMap(tensor=number, affine=affine),
        **{k: torchio.LabelMap(tensor=v.cpu(), affine=affine) for k, v in given.items() if k != "image"},
    )
    moved = transform(subject)
    for done in moved.history:
        if isinstance(done, torchio.SpatialTransform) and (done.include or done.exclude):
            raise ValueError(
                f"{type(done).__name__} has include={done.include} and exclude={done.exclude}, so that image, masks "
                "and words would part: leave both out, torchio moves all volumes of a study alike"
            )
    made = {name: moved[name].data.to(volume.device) for name, volume in given.items()}
    whole = tuple(made["image"].shape[1:]) == shape
    source = _fit(moved["number"].data[0].round().long().numpy() - 1, shape) if whole else np.eye(4)
    return made, dict.fromkeys(given, source)


def _fit(number: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The affine map nearest to where each voxel came from (−1: from outside)."""
    places = np.meshgrid(*[np.linspace(0, size - 1, min(size, _PROBES)).astype(int) for size in shape], indexing="ij")
    new = np.stack([place.ravel() for place in places], axis=1)
    new = new[number[tuple(new.T)] >= 0]
    old = np.stack(np.unravel_index(number[tuple(new.T)], shape), axis=1)
    if np.array_equal(new, old):
        return np.eye(4)
    known = np.concatenate([new, np.ones((len(new), 1))], axis=1)
    source = np.eye(4)
    source[:3] = np.linalg.lstsq(known, old, rcond=None)[0].T
    return source
