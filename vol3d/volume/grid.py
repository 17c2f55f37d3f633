"""The preprocessing card: which grid, which HU window; and the way back to the file's own grid."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vol3d.types import Spacing, Triple
from vol3d.volume.alignment import carry, check_overlap, check_same_grid, meta_tensor, outside, padding, resample
from vol3d.volume.atomic import atomic
from vol3d.volume.card import check_pair, check_three, check_windows
from vol3d.volume.files import brief
from vol3d.volume.geometry import Flips, Geometry, canonical_turn, turn, turn_back
from vol3d.volume.hounsfield import WINDOWED, check_not_windowed, check_whole_numbers
from vol3d.volume.label_maps import resample_labels
from vol3d.volume.lattice import Axes, foreground, lattice
from vol3d.volume.loaded import AIR, Loaded, thinned
from vol3d.volume.presets import PRESETS
from vol3d.volume.resampling import (
    Kind,
    interpolates,
    resample_dense,
    resample_slices,
    resample_volume,
    to_int16,
)
from vol3d.volume.windows import apply_windows

if TYPE_CHECKING:
    from monai.data import MetaTensor

VERSION = 1
"""Raised whenever the same card would give other HU, so that caches made before are not reused."""


@dataclass(frozen=True)
class Grid:
    """How a volume is prepared for a network. Saved with every model, the same code in training and inference.

    The volume's axes keep their directions (an oblique scan stays oblique, its affine says how); the lattice starts at
    its first voxel and is cropped or padded around its centre: equal to MONAI's Orientation, Spacing (bilinear),
    ResizeWithPadOrCrop, computed separably. Downsampling reads two neighbours an axis, as MONAI and the published
    models do; `antialias=True` averages instead, so that nothing thin falls between samples.

    Args:
        spacing: mm between voxels along x, y, z. None: the volume is resized to `shape`, whatever its extent.
        shape: voxels along x, y, z. None: as many as the volume needs.
        window: (low, high) HU mapped to `out_range` and clipped; several pairs make one channel each; or a rule of
            the volume itself: "minmax", "percentile" (0.5 to 99.5 %, for MR) or "zscore".
        out_range: what the ends of a window become.
        orientation: towards which side the axes grow: "RAS", or another choice of sides ("LPS").
        pad: HU outside the volume. Air, the default, stands for the lowest value on the grid in a volume that is no CT.
        crop: "center", or "foreground": the box of voxels above the volume's minimum is cut out first.
        antialias: average over the step when downsampling (a triangle filter).
        name: for people.

    Raises:
        ValueError: a size, spacing, window or orientation that cannot be.

    Example:
        >>> grid = Grid(spacing=(1.5, 1.5, 3), shape=(224, 224, 160), window=[(-1000, 1000), (-160, 240)])
        >>> grid.channels
        2
    """

    spacing: Sequence[float | int] | None = None
    shape: Sequence[int] | None = None
    window: Sequence[float | int] | Sequence[Sequence[float | int]] | str = (-1000.0, 1000.0)
    out_range: Sequence[float | int] = (0.0, 1.0)
    orientation: str = "RAS"
    pad: int = AIR
    crop: str = "center"
    antialias: bool = False
    name: str = "custom"

    def __post_init__(self) -> None:
        put = lambda key, value: object.__setattr__(self, key, value)  # noqa: E731  # the class is frozen
        if self.spacing is not None:
            put("spacing", check_three(self.spacing, "spacing", float))
        if self.shape is not None:
            put("shape", check_three(self.shape, "shape", int))
        put("window", check_windows(self.window))
        put("out_range", check_pair(self.out_range, "out_range"))
        put("pad", int(self.pad))
        put("orientation", self.orientation.upper())
        if len(self.orientation) != 3 or any(
            code not in pair for code, pair in zip(self.orientation, ("RL", "AP", "SI"), strict=True)
        ):
            raise ValueError(
                f"orientation {self.orientation!r}: vol3d keeps the axes in the order x, y, z; choose a side for each: "
                "R or L, A or P, S or I"
            )
        if self.crop not in ("center", "foreground"):
            raise ValueError(f"crop {self.crop!r}: choose 'center' or 'foreground'")

    @classmethod
    def preset(cls, name: str) -> Grid:
        """The card of a published model; `Grid.names()` lists them.

        Raises:
            ValueError: no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"no grid named {name!r}; there are {', '.join(cls.names())}")
        return cls(**PRESETS[name], name=name)

    @staticmethod
    def names() -> list[str]:
        """Names for `Grid.preset`."""
        return sorted(PRESETS)

    @property
    def channels(self) -> int:
        """One a window."""
        return 1 if isinstance(self.window, str) else len(self.window)

    @property
    def value_range(self) -> tuple[float, float]:
        """What a window's ends become: `out_range`; of a z-score, which has no ends, one deviation about the mean."""
        low, high = self.out_range
        return (-0.5, 0.5) if self.window == "zscore" else (float(low), float(high))

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of all that decides the HU on the grid; the window, applied later, is left out."""
        kept = {key: value for key, value in self.to_dict().items() if key not in ("window", "out_range", "name")}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON-ready values."""
        return {"version": VERSION, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_dict(cls, card: dict[str, Any]) -> Grid:
        """The grid of `to_dict`.

        Raises:
            ValueError: a card of another version, or with a field this one does not know.
        """
        version = card.get("version", VERSION)
        if version != VERSION:
            raise ValueError(f"grid card of version {version}, this vol3d reads version {VERSION}: make it anew")
        unknown = sorted(set(card) - {field.name for field in fields(cls)} - {"version"})
        if unknown:
            raise ValueError(
                f"grid card has unknown fields {', '.join(unknown)}; known: {[f.name for f in fields(cls)]}"
            )
        return cls(**{key: value for key, value in card.items() if key != "version"})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the card as JSON (grid.json), whole or not at all."""
        with atomic(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Grid:
        """The card that `save` wrote.

        Raises:
            ValueError: not a card.
        """
        try:
            card = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls.from_dict(card)
        except (json.JSONDecodeError, AttributeError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a grid card ({brief(error)}); write one with Grid.save") from error

    def __call__(self, volume: MetaTensor) -> MetaTensor:
        """HU volume (1, x, y, z) → float32 (channels, *shape), windowed."""
        on_grid = self.resample(volume)
        meta = {**on_grid.meta, WINDOWED: self.name or "grid"}
        return meta_tensor(self.window_hu(on_grid.as_tensor()), Geometry.of(on_grid), meta)

    def resample(self, volume: MetaTensor) -> MetaTensor:
        """HU volume (1, x, y, z) → int16 HU on the grid (1, *shape), with the grid's affine: what a cache stores.

        A volume that lies on the grid already keeps its voxels exactly.

        Raises:
            ValueError: no geometry; values that were windowed or normalised before; `meta["modality"]` is not CT, and
                the values are such as int16 does not hold.
        """
        geometry, array = Geometry.of(volume), _array(volume)
        sample = np.array(thinned(array), np.float32)
        check_not_windowed(volume.meta, sample)
        if volume.meta.get("modality", "CT") != "CT":
            check_whole_numbers(volume.meta.get("filename", "volume"), sample)
        return self._on_grid(array, geometry, lambda part: np.array(part, np.float32, order="K"), volume.meta)

    def read(self, path: str | os.PathLike[str], **options: Any) -> MetaTensor:
        """`self.resample(vol3d.read(path))` without a float copy of the whole volume: several times faster.

        Args:
            options: `series`, `modality`, `irregular`, as for `vol3d.read`.
        """
        from vol3d.volume.read import load

        return self.place(load(path, unread=True, **options))

    def place(self, loaded: Loaded) -> MetaTensor:
        """`self.read` of what `vol3d.volume.read.load` gives, for its masks' sake. Unread voxels are taken slice by
        slice where the grid allows it, and never held together.

        Raises:
            ValueError: no CT, and of values that int16 does not hold.
        """
        if not loaded.is_ct:
            loaded.ask(lambda loaded, sample: check_whole_numbers(loaded.path, loaded.scaled(sample)))
        if loaded.unread and self.crop != "foreground":
            order, flips = canonical_turn(loaded.affine, self.orientation)
            axes, target = lattice(loaded.geometry.turned(order, flips), self.spacing, self.shape)
            if order[2] == 2 and interpolates(axes):
                slices = _turned(loaded, order, flips)
                out = resample_slices(slices, axes, loaded.values, pad=self.padding(loaded.modality), kind=self._kind)
                return meta_tensor(out[None], target, loaded.meta())
        return self._on_grid(loaded.canonical(), loaded.geometry.canonical(), loaded.values, loaded.meta())

    def _on_grid(self, array: NDArray[Any], geometry: Geometry, convert: Any, meta: dict[str, Any]) -> MetaTensor:
        order, flips = canonical_turn(geometry.affine, self.orientation)
        array = turn(array, order, flips)
        box = foreground(array, convert) if self.crop == "foreground" else None
        axes, target = lattice(geometry.turned(order, flips), self.spacing, self.shape, box)
        if all(axis.unchanged for axis in axes):
            out = to_int16(torch.from_numpy(np.ascontiguousarray(convert(array))))
        else:
            out = resample_volume(array, axes, convert, pad=self.padding(meta.get("modality")), kind=self._kind)
        return meta_tensor(out[None], target, meta)

    def padding(self, modality: str | None) -> int | None:
        """What lies outside a volume of this modality; None for its lowest value, since −1024 is air in HU only."""
        return padding(modality, self.pad)

    def outside(self, hu: Tensor, modality: str | None) -> int:
        """The same for a volume that lies on the grid already, whose lowest value is known."""
        return int(outside(hu, modality, self.pad))

    @property
    def _kind(self) -> Kind:
        return "average" if self.antialias else "linear"

    def geometry(self, volume: MetaTensor) -> Geometry:
        """Where the grid lies for this volume."""
        return self._plan(volume)[1]

    def resample_mask(self, mask: MetaTensor, like_volume: MetaTensor | Loaded | Geometry | None = None) -> MetaTensor:
        """Label map (1, x, y, z) → int16 labels on the grid (1, *shape), 0 outside.

        Labels on the volume's own grid are brought over by trilinear vote on their smooth borders (no two numbers are
        ever mixed); a mask on a grid of its own by nearest voxel. A float mask gives the share of each grid voxel
        that it fills, float32: a soft target. Either way a 20 mm sphere comes back from Merlin's grid with Dice 0.98
        (whole numbers: 0.977 at the worst of several hundred centres, spacings and turns).

        Args:
            like_volume: the volume the mask belongs to (as read, or only loaded), or its geometry, over which the
                grid is laid. None: over the mask itself.

        Raises:
            ValueError: the mask and the volume lie in different places.
        """
        reference = mask if like_volume is None else like_volume
        axes, target, order, flips = self._plan(reference)
        own, other = Geometry.of(mask), _geometry(reference)
        if own.is_close(other):
            values = turn(_array(mask), order, flips)
            if values.dtype.kind == "f":
                out = resample_dense(torch.from_numpy(np.array(values, np.float32)), axes, kind="average")
            else:
                out = resample_labels(values, axes, spacing=own.turned(order, flips).spacing)
            return meta_tensor(out[None], target, mask.meta)
        check_overlap(own, other)
        return meta_tensor(carry(_array(mask), own, target)[None], target, mask.meta)

    def inverse(self, on_grid: Tensor | NDArray[Any], like: MetaTensor) -> MetaTensor:
        """What was found on the grid → the grid and orientation of the file that `like` was read from.

        Integer and boolean arrays are label maps: each voxel takes the label whose smooth border it lies in (a 20 mm
        sphere comes back from Merlin's grid with Dice 0.98 and more). Floats (probabilities) are interpolated
        trilinearly: threshold them afterwards. Outside the grid: 0.

        Args:
            on_grid: (x, y, z) or (channels, x, y, z) on `self.geometry(like)`.
            like: the volume, as read.

        Shape:
            (channels, *like.meta["original_shape"]), affine = like.meta["original_affine"].

        Raises:
            ValueError: the array is not on this grid (both shapes named).
        """
        axes, target, order, flips = self._plan(like)
        values = on_grid.as_tensor() if hasattr(on_grid, "as_tensor") else torch.as_tensor(on_grid)
        values = values.detach().cpu()
        values = values[None] if values.ndim == 3 else values
        if values.ndim != 4 or tuple(values.shape[1:]) != target.shape:
            raise ValueError(
                f"array is {tuple(values.shape)}, grid {self.name!r} is {target.shape} for this volume: pass what "
                "the network gave on this grid"
            )
        file, own = _file_geometry(like), Geometry.of(like)
        if file.canonical().is_close(own.canonical()):
            back = tuple(axis.reverse() for axis in axes)
            found = [_back(channel, back, target.spacing).numpy() for channel in values]
            found = [turn_back(channel, order, flips) for channel in found]  # as `like` lies
            found = [turn(channel, *canonical_turn(own.affine)) for channel in found]
            found = [turn_back(channel, *canonical_turn(file.affine)) for channel in found]  # as the file lies
        else:  # the reader straightened a tilted file
            found = [carry(channel.numpy(), target, file).numpy() for channel in values]
        out = torch.from_numpy(np.ascontiguousarray(np.stack(found)))
        return meta_tensor(out if values.is_floating_point() else out.to(values.dtype), file, like.meta)

    def window_hu(self, hu: Tensor, out: Tensor | None = None) -> Tensor:
        """HU (..., 1, x, y, z), any number type, any device → float32 (..., channels, x, y, z) in `out_range`.

        Plain torch, one volume or a batch, so that it runs on the device after the loader.

        Args:
            out: float32 memory of the result's shape to write into; fresh memory costs more than the window itself.
        """
        return apply_windows(hu, self.window, self.out_range, out)

    def _plan(self, like: MetaTensor | Loaded | Geometry) -> tuple[Axes, Geometry, Triple, Flips]:
        """The lattice over a volume, where it lies, and how the volume is turned before."""
        geometry = _geometry(like)
        order, flips = canonical_turn(geometry.affine, self.orientation)
        box = None
        if self.crop == "foreground":
            if isinstance(like, Geometry):
                raise ValueError(f"grid {self.name!r} crops the foreground: give the volume itself, not its geometry")
            if isinstance(like, Loaded):
                box = foreground(turn(like.canonical(), order, flips), like.values)
            else:
                box = foreground(turn(_array(like), order, flips))
        axes, target = lattice(geometry.turned(order, flips), self.spacing, self.shape, box)
        return axes, target, order, flips


def _turned(loaded: Loaded, order: Triple, flips: Flips) -> Iterator[tuple[int, NDArray[Any]]]:
    """z and (y, x) of each slice of a file whose third axis is z, in the file's order."""
    last = loaded.geometry.shape[2] - 1
    for number, part in enumerate(loaded.slices()):
        yield last - number if flips[2] else number, turn(part[:, :, None], order, flips)[:, :, 0].T


def _geometry(like: MetaTensor | Loaded | Geometry) -> Geometry:
    if isinstance(like, Loaded):
        return like.geometry.canonical()
    return like if isinstance(like, Geometry) else Geometry.of(like)


def _back(channel: Tensor, axes: Axes, spacing: Spacing) -> Tensor:
    if channel.is_floating_point():
        return resample_dense(channel.float(), axes, kind="linear")
    return resample_labels(channel.numpy().astype(np.int32), axes, spacing=spacing, back=True)


def _file_geometry(volume: MetaTensor) -> Geometry:
    """The grid of the file a volume was read from; its own, when it came from no file."""
    affine, shape = volume.meta.get("original_affine"), volume.meta.get("original_shape")
    if affine is None or shape is None:
        return Geometry.of(volume)
    return Geometry(np.asarray(affine, dtype=np.float64), tuple(int(size) for size in shape))


def _array(volume: MetaTensor) -> NDArray[Any]:
    """The one channel of a volume as an array (x, y, z), not copied."""
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise ValueError(f"volume is {tuple(volume.shape)}, a grid takes (1, x, y, z): one study, one channel of HU")
    tensor = volume.as_tensor() if hasattr(volume, "as_tensor") else volume
    return tensor[0].detach().cpu().numpy()


__all__ = ["Grid", "check_same_grid", "resample"]
