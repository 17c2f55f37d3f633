"""Features of a frozen encoder, kept in memory or on the disk so that each study is encoded once."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch

from vol3d.data.batch import Batch, Sample, collate
from vol3d.data.cache import FillReport, Reader, VolumeCache, other_format
from vol3d.data.entries import Compression
from vol3d.data.identity import file_identity
from vol3d.data.manifest import Manifest
from vol3d.data.parallel import batched, map_in_order
from vol3d.data.shards import shard as part_of
from vol3d.data.study import Study
from vol3d.model.inference import usable
from vol3d.model.interfaces import Encoder, Features
from vol3d.volume.atomic import atomic, save_tensors
from vol3d.volume.grid import Grid

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of the files and of how they are named."""
FOLDER = "features"
"""Where features lie in a cache's folder."""
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class FeatureCache:
    """Remembers features by study name while the encoder is frozen.

    Only for images that are the same at every visit (no augmentation), and without the finer maps (`scales`), which
    are many times larger than the tokens. When `limit_gb` is reached the studies beyond it are encoded again, or read
    from the disk where `store` has them.

    Args:
        limit_gb: memory the kept tokens may take, in GB (10^9 bytes).
    """

    def __init__(self, limit_gb: float) -> None:
        self.limit = self.room = limit_gb * 1e9
        self.kept: dict[str, Features] = {}
        self.store: FeatureStore | None = None
        """Features that `prepare --features` left; `StoredFeatures` sets it."""

    def clear(self) -> None:
        self.room = self.limit
        self.kept.clear()
        if self.store is not None:
            self.store.forget()

    @torch.no_grad()
    def __call__(
        self, batch: Batch, encode: Callable[[Batch], Features], *, wanted: Callable[[int], bool] = bool
    ) -> Features:
        """The batch's features: kept ones where there are, the rest encoded and kept.

        Args:
            wanted: whether the encoder runs, from how many studies are new. Divided weights are gathered by all
                processes at once: where another one encodes, this one encodes a study that it knows.
        """
        fresh: dict[int, Features] = {}
        new = []
        for row, study in enumerate(batch.studies):
            if study.study not in self.kept:
                stored = None if self.store is None else self.store.get(study)
                if stored is None:
                    new.append(row)
                else:
                    fresh[row] = stored
                    self._keep(study.study, fresh[row])
        if wanted(len(new)):
            encoded = encode(batch.select(new or [0]))
            for place, row in enumerate(new):
                fresh[row] = replace(encoded, scales=())[[place]]
                self._keep(batch.studies[row].study, fresh[row])
        rows = [fresh[row] if row in fresh else self.kept[study.study] for row, study in enumerate(batch.studies)]
        return _join(rows, batch.image.device)

    def _keep(self, study: str, features: Features) -> None:
        size = size_of(features)
        if size <= self.room:
            self.room -= size
            self.kept[study] = features


def size_of(features: Features) -> int:
    """Bytes of the tokens."""
    return features.tokens.numel() * features.tokens.element_size()


def _join(rows: list[Features], device: torch.device) -> Features:
    def cat(name: str) -> torch.Tensor | None:
        parts = [getattr(row, name) for row in rows]
        return None if parts[0] is None else torch.cat([part.to(device) for part in parts])

    return Features(cat("tokens"), rows[0].grid_size, cat("affine"), cat("pooled"))


# --- on the disk ----------------------------------------------------------------------------------------------


class FeatureStore:
    """Features of one encoder in files, one a study.

    A file's name is a hash of what the image holds, the grid with its window, the encoder's settings and weights, and
    the precision: whatever changes, the old file is not found any more.

    Args:
        cache: folder of the cache; features lie in its `features`.
        precision: the trainer's, since tokens made in bfloat16 differ from those made in float32.
    """

    def __init__(self, cache: str | Path, encoder: Encoder, grid: Grid, precision: str = "32-true") -> None:
        self.folder, self.encoder, self.grid = Path(cache) / FOLDER, encoder, grid
        self.precision = str(precision)
        self._weights: str | None = None

    def forget(self) -> None:
        """The encoder has learnt, or may have: its weights are looked at again."""
        self._weights = None

    def path(self, study: Study) -> Path | None:
        """Where the study's features lie when they are there; None while DeepSpeed holds the weights in pieces."""
        if self._weights is None:
            self._weights = fingerprint(self.encoder)
        if not self._weights:
            return None
        card = json.dumps(self.grid.to_dict(), sort_keys=True)
        image = [file_identity(study.image), study.modality, *other_format(study)]
        key = json.dumps([FORMAT, card, self._weights, self.precision, *image])
        name = hashlib.sha256(key.encode()).hexdigest()[:40]
        return self.folder / self._weights[:16] / name[:2] / f"{name}.safetensors"

    def get(self, study: Study) -> Features | None:
        """The study's features on the CPU, as a batch of one, or None; a file that cannot be read counts as none."""
        from safetensors import SafetensorError, safe_open

        path = self.path(study)
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                grid_size = tuple(json.loads(file.metadata()["grid_size"]))
        except (SafetensorError, OSError) as error:
            logger.warning("%s cannot be read (%s): study %r is encoded again", path, error, study.study)
            return None
        return Features(tensors["tokens"], grid_size, tensors.get("affine"), tensors.get("pooled"))

    def put(self, study: Study, features: Features) -> None:
        """Keep the features of one study (a batch of one), whole or not at all."""
        path = self.path(study)
        if path is None:
            return
        named = {"tokens": features.tokens, "affine": features.affine, "pooled": features.pooled}
        tensors = {name: t.detach().cpu().contiguous() for name, t in named.items() if t is not None}
        with atomic(path) as part:
            save_tensors(tensors, part, {"grid_size": json.dumps(list(features.grid_size))})


def fingerprint(encoder: Encoder) -> str:
    """Hex digits of the encoder's class, settings and weights; empty when DeepSpeed holds the weights in pieces."""
    from torch.distributed.tensor import DTensor

    if any(hasattr(parameter, "ds_id") for parameter in encoder.parameters()):
        logger.warning("features on the disk are not read under ZeRO-3, which holds the encoder in pieces")
        return ""
    plain = (str, int, float, bool, list, tuple, dict, type(None))
    settings = {name: value for name, value in encoder.init_args.items() if isinstance(value, plain)}
    # FSDP2 gives the classes of its parts names of their own; the settings tell encoders of one shape apart.
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode())
    for name, tensor in encoder.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
        digest.update(whole.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class StoredFeatures(lightning.Callback):
    """Lets a run with a frozen encoder read what `prepare --features` left in the cache's folder.

    Args:
        cache: folder of the cache.
    """

    def __init__(self, cache: str | Path) -> None:
        self.cache = Path(cache)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if (self.cache / FOLDER).is_dir():
            pl_module.feature_cache.store = FeatureStore(
                self.cache, pl_module.model.encoder, trainer.datamodule.grid, trainer.precision
            )


def prepare_features(
    manifest: Manifest | str | Path,
    source: str | Path,
    cache: str | Path,
    *,
    shard: tuple[int, int] | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: str | None = None,
    compression: Compression | None = None,
    progress: bool = False,
) -> FillReport:
    """Encode the studies that training will read, once each, with the encoder of a model folder or of a recipe.

    Only training reads them, so these are the rows of the split "train", or all when no row has a split. A run by the
    same recipe finds them when its `data.cache` is this folder, its encoder has these weights and does not learn. A
    study that is there already is not encoded again; one that cannot be read is listed in features/failures.jsonl.

    Args:
        source: folder of a saved model (its features are made in float32), or a recipe (in the trainer's precision).
        shard: (index, count): only these studies, see `vol3d.data.shards.shard`; many jobs may fill one folder.
        batch_size: studies encoded at once. workers: processes that read volumes.
        device: None takes a GPU when there is one.
        compression: of new entries of volumes, see `VolumeCache`; features are never compressed.

    Raises:
        ValueError: a device that torch does not have, or a precision whose features training could not reproduce.
    """
    start = time.monotonic()
    place = usable(device or "auto")
    encoder, grid, precision = encoder_of(source)
    encoder = encoder.eval().to(place)
    manifest = manifest if isinstance(manifest, Manifest) else Manifest.read(manifest)
    chosen = manifest if all(study.split is None for study in manifest) else manifest.split("train")
    chosen = chosen if shard is None else part_of(chosen, *shard)
    store = FeatureStore(cache, encoder, grid, precision)
    failed: dict[str, str] = {}
    missing = [study for study in chosen if not _there(store, study, failed)]
    ready = len(chosen) - len(missing) - len(failed)
    size = batch_size if grid.shape is not None else 1
    for samples in _read(VolumeCache(cache, grid, compression), missing, size, workers, failed, progress=progress):
        batch = collate(samples).to(place)
        with torch.no_grad(), autocast(precision, place):
            features = encoder(grid.window_hu(batch.image), batch.affine)
        for row, study in enumerate(batch.studies):
            store.put(study, replace(features, scales=())[[row]])
    name = "failures.jsonl" if shard is None else f"failures-{shard[0]:04d}-of-{shard[1]:04d}.jsonl"
    failures = _list(store.folder / name, failed)
    made = len(chosen) - ready - len(failed)
    return FillReport(len(chosen), made, ready, len(failed), time.monotonic() - start, failures)


def _list(path: Path, failed: dict[str, str]) -> Path | None:
    path.unlink(missing_ok=True)
    if not failed:
        return None
    with atomic(path) as part:
        lines = [json.dumps({"study": name, "error": error}) + "\n" for name, error in failed.items()]
        part.write_text("".join(lines), encoding="utf-8")
    return path


def _there(store: FeatureStore, study: Study, failed: dict[str, str]) -> bool:
    """Whether the study needs no encoding: its features are there, or its image is not."""
    try:
        path = store.path(study)
    except OSError as error:
        failed[study.study] = str(error)
        return True
    return path is not None and path.exists()


def _read(
    cache: VolumeCache, studies: list[Study], size: int, workers: int, failed: dict[str, str], *, progress: bool
) -> Iterator[list[Sample]]:
    """Batches of samples, prepared on the way; what cannot be read goes to `failed`."""
    from tqdm import tqdm

    def good() -> Iterator[Sample]:
        read = map_in_order(partial(Reader(cache.grid, cache).attempt, masks=()), studies, workers)
        found = zip(studies, read, strict=True)
        for study, sample in tqdm(found, desc="encode", unit="study", total=len(studies), disable=not progress):
            if isinstance(sample, Exception):
                failed[study.study] = str(sample)
            else:
                yield sample

    return batched(good(), size)


def encoder_of(source: str | Path) -> tuple[Encoder, Grid, str]:
    """The encoder, grid and precision of a model folder, or of a recipe as training begins with it."""
    if Path(source).is_dir():
        from vol3d.model.pretrained import build

        model, _, grid = build(source)
        return model.encoder, grid, "32-true"
    from vol3d.training.recipe import RecipeParts

    parts = RecipeParts(["--config", str(source)])
    if parts.model.base is not None:
        from vol3d.model.fine_tuning import Base

        Base.read(parts.model.base).give_encoder(parts.model.encoder)
    return parts.model.encoder, parts.datamodule.grid, parts.precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """What the trainer of this precision wraps a step in.

    Raises:
        ValueError: a precision that changes the weights themselves.
    """
    if precision in _AUTOCAST:
        return torch.autocast(device.type, _AUTOCAST[precision])
    if precision == "32-true":
        return nullcontext()
    raise ValueError(
        f"features are made for the precisions 32-true, {', '.join(_AUTOCAST)}, the recipe trains in {precision!r}: "
        "choose one of these"
    )
