"""Augmentation on the device, a whole batch at a time, that never lets image and words disagree.

A report says left and right, so a mirrored volume needs a mirrored report. Here a flip is off by default, and where
it is asked for, the words, label names and boxes turn with the voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.text.lexicon import swap_sides

_TEXTS = ("report", "findings", "impression")


@dataclass(frozen=True)
class Augment:
    """Random changes of a windowed batch, drawn anew for each study; the same seed and step give the same ones.

    Masks and affines follow the voxels. Boxes and reports stay true: they are in mm and words, and the affine says
    where each voxel now lies. Only `flip` changes the patient, and with it the study's words, label names and boxes.

    Args:
        rotate: up to so many degrees about each axis.
        zoom: up to so much larger or smaller (0.1: 0.9 to 1.1).
        shift: up to so many voxels along each axis.
        brightness: up to so much added, in units of the window (0.1 of ±1000 HU is 200 HU).
        contrast: up to so much stronger or weaker about the window's middle.
        noise: standard deviation of Gaussian noise, up to so much.
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
        return replace(batch, image=self._shade(batch.image, draw))

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
        return replace(
            batch,
            image=_sample(batch.image, places, "bilinear"),
            affine=batch.affine @ source.to(batch.affine.device),
            mask=_move_mask(batch.mask, places),
            finding_mask=_move_mask(batch.finding_mask, places),
        )

    def _shade(self, image: Tensor, draw: _Draws) -> Tensor:
        if self.brightness or self.contrast:
            gain, level = (
                amount[:, :, None, None, None].to(image) for amount in (draw.around_zero(1), draw.around_zero(1))
            )
            image = (image - 0.5) * (1 + self.contrast * gain) + 0.5 + self.brightness * level
        if self.noise:
            strength = (self.noise * draw.unit())[:, None, None, None, None].to(image)
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
    rows = [row for row, study in enumerate(batch.studies) if bool(wanted[row]) and not _names_a_side(study)]
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


def _names_a_side(study: Study) -> bool:
    """Whether a code of the study may tell left from right: ICD-10-CM codes do (C34.11 and C34.12), others do not."""
    from vol3d.text.ontology import FINDINGS

    sideless = {kind.icd10cm for kind in FINDINGS.values()}
    return study.code_system == "icd10cm" and not sideless.issuperset([*study.codes, *study.codes_absent])


def mirror_study(study: Study, affine: NDArray[np.float64], width: int) -> Study:
    """The row of a study whose voxels were flipped along x: texts, label names, boxes and questions turned with it.

    Args:
        affine: (4, 4) voxel index → RAS mm of the grid that was flipped.
        width: its voxels along x.
    """
    changes: dict[str, Any] = {name: swap_sides(text) for name in _TEXTS if (text := vars(study)[name])}
    for name in ("labels_known", "mask_labels", "finding_labels"):
        changes[name] = {swap_sides(key): value for key, value in getattr(study, name).items()}
    changes["boxes"] = [_mirror_box(box, affine, width) for box in study.boxes]
    changes["questions"] = [_mirror_texts(question) for question in study.questions]
    return replace(study, **changes)


def _mirror_texts(question: Mapping[str, Any]) -> dict[str, Any]:
    swap: Callable[[Any], Any] = lambda value: swap_sides(value) if isinstance(value, str) else value  # noqa: E731
    return {
        name: [swap(item) for item in value] if isinstance(value, list) else value if name == "kind" else swap(value)
        for name, value in question.items()
    }


def _mirror_box(box: Mapping[str, Any], affine: NDArray[np.float64], width: int) -> dict[str, Any]:
    ends = zip(box["min_mm"], box["max_mm"], strict=True)
    corners = np.array([(*corner, 1.0) for corner in product(*ends)]) @ np.linalg.inv(affine).T
    corners[:, 0] = width - 1 - corners[:, 0]
    turned = (corners @ affine.T)[:, :3]
    low, high = turned.min(axis=0), turned.max(axis=0)
    return {**box, "label": swap_sides(box["label"]), "min_mm": low.tolist(), "max_mm": high.tolist()}
