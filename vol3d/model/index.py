"""Search by content: a folder of studies' vectors, asked with another volume or with words."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

if TYPE_CHECKING:
    from torch import Tensor

    from vol3d.data.manifest import Manifest
    from vol3d.model.inference import TrainedModel

EXACT_UP_TO = 100_000
"""Studies; beyond it `VolumeIndex.build` chooses HNSW."""

Kind = Literal["exact", "hnsw"]
_IMAGE_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".dcm")


class VolumeIndex:
    """Unit vectors of studies, the nearest of which are found by inner product (cosine).

    Up to 10⁵ studies every vector is compared (faiss' flat index, or NumPy where faiss is not installed); beyond, faiss
    searches a graph (HNSW, Malkov & Yashunin 2016, arXiv:1603.09320), which may miss some.

    Args:
        vectors: (studies, dim); kept only by an exact index.
        rows: one a study, with "study" and "image".
        kind: "exact" or "hnsw". model: folder of the model that made the vectors, with `weights`, their digest.
    """

    def __init__(
        self, searcher: Any, rows: list[dict[str, str]], dim: int, kind: Kind, model: str = "", weights: str = ""
    ) -> None:
        self.searcher, self.rows, self.dim, self.kind = searcher, rows, dim, kind
        self.model, self.weights = model, weights

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def build(
        cls,
        vectors: Float[ndarray, "studies dim"],
        rows: Sequence[Mapping[str, str]],
        *,
        kind: Kind | None = None,
        model: str = "",
        weights: str = "",
    ) -> VolumeIndex:
        """An index of these vectors, which are brought to length 1.

        Args:
            kind: None takes "exact" up to `EXACT_UP_TO` studies and "hnsw" beyond.

        Raises:
            ValueError: vectors and rows differ in number, there are none, or a vector is not finite or zero.
            ImportError: an index that is not exact, and faiss is not installed.
        """
        if len(vectors) != len(rows) or not len(rows):
            raise ValueError(f"{len(vectors)} vectors, {len(rows)} studies: give one a study, and at least one")
        length = np.linalg.norm(vectors, axis=1)
        bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
        if len(bad):
            study = rows[int(bad[0])]["study"]
            raise ValueError(f"the vector of study {study!r} is zero or not finite ({len(bad)} of {len(rows)} are)")
        unit = np.ascontiguousarray(vectors / length[:, None], dtype=np.float32)
        kind = kind or ("exact" if len(rows) <= EXACT_UP_TO else "hnsw")
        return cls(_searcher(unit, kind), [dict(row) for row in rows], unit.shape[1], kind, model, weights)

    def search(self, vector: Float[ndarray, " dim"], k: int = 10) -> list[dict[str, Any]]:
        """The `k` nearest studies, nearest first: [{"study", "score", "image"}], the score a cosine.

        Raises:
            ValueError: a vector of another length, or k below 1.
        """
        if len(vector) != self.dim or k < 1:
            raise ValueError(
                f"the query has {len(vector)} numbers and k is {k}, the index holds {self.dim} a study: query with the "
                "model the index was made with, and k of at least 1"
            )
        query = np.asarray(vector, dtype=np.float32)[None] / max(float(np.linalg.norm(vector)), 1e-12)
        scores, places = self.searcher.search(query, min(k, len(self)))
        found = [(score, place) for score, place in zip(scores[0], places[0], strict=True) if place >= 0]
        return [
            {"study": self.rows[place]["study"], "score": round(float(score), 6), "image": self.rows[place]["image"]}
            for score, place in found
        ]

    def save(self, folder: str | Path) -> Path:
        """Write the index to a folder, whole or not at all; an earlier index there is replaced.

        Raises:
            ValueError: the folder holds something else.
        """
        folder = Path(folder)
        _check_place(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            about = {"kind": self.kind, "dim": self.dim, "studies": len(self), "model": self.model}
            (draft / "index.json").write_text(json.dumps({**about, "weights": self.weights}, indent=1) + "\n")
            lines = "".join(json.dumps(row) + "\n" for row in self.rows)
            (draft / "studies.jsonl").write_text(lines, encoding="utf-8")
            _write_searcher(self.searcher, self.kind, draft)
            draft.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(draft, folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> VolumeIndex:
        """An index that was saved.

        Raises:
            ValueError: the folder is no index. ImportError: it needs faiss, which is not installed.
        """
        folder = Path(folder)
        if not (folder / "index.json").is_file():
            raise ValueError(f"{folder} is no index: it has no index.json; make one with `vol3d embed MODEL MANIFEST`")
        about = json.loads((folder / "index.json").read_text())
        rows = [json.loads(line) for line in (folder / "studies.jsonl").read_text(encoding="utf-8").splitlines()]
        searcher = _read_searcher(folder, about["kind"])
        return cls(searcher, rows, about["dim"], about["kind"], about["model"], about["weights"])


def embed(
    model: TrainedModel | str | Path,
    manifest: Manifest | str | Path,
    out: str | Path,
    *,
    batch_size: int = 8,
    workers: int = 0,
    progress: bool = False,
) -> VolumeIndex:
    """Index every study of a manifest by its volume's vector, and save the index to `out`.

    Args:
        model: a trained model with a retrieval task, or its folder; the index remembers where it lies.
        workers: processes that read volumes ahead of the model.

    Raises:
        ValueError: the model has no retrieval task, the manifest no study, or `out` holds something else.
    """
    import torch
    from tqdm import tqdm

    from vol3d.data.manifest import Manifest
    from vol3d.data.parallel import batched
    from vol3d.model.inference import TrainedModel, load

    _check_place(Path(out))
    trained = model if isinstance(model, TrainedModel) else load(model)
    task = trained._task("retrieval")
    studies = list(manifest if isinstance(manifest, Manifest) else Manifest.read(manifest))
    vectors, bar = [], tqdm(total=len(studies), desc="embed", unit="study", disable=not progress)
    with bar, torch.inference_mode():
        for group in batched(trained.read_ahead(studies, masks=False, workers=workers), batch_size):
            features, _ = trained._see(*group)
            vectors.append(task.embed_volume(trained.model, features).float().cpu().numpy())
            bar.update(len(group))
    table = np.concatenate(vectors) if vectors else np.zeros((0, 1), np.float32)
    rows = [{"study": study.study, "image": str(study.image)} for study in studies]
    folder = trained.folder
    weights = "" if folder is None else _digest(folder)
    index = VolumeIndex.build(table, rows, model="" if folder is None else str(folder.resolve()), weights=weights)
    index.save(out)
    return index


def _check_place(folder: Path) -> None:
    """An index may be written here: into a new or empty folder, or over an earlier index."""
    if folder.exists() and not (folder / "index.json").is_file() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is no index: choose another folder, nothing was written")


def search(folder: str | Path, query: Tensor | str | Path, k: int = 10, *, device: str = "cpu") -> list[dict[str, Any]]:
    """The studies of an index that are nearest to a volume or to words.

    Args:
        folder: what `embed` wrote. query: a volume (its path, or what `vol3d.read` gave), or a text. device: where the
            model runs, as `load` has it.

    Raises:
        ValueError: an empty query, an image that is not there, or a model that is gone or has other weights than it
            had then.
    """
    from vol3d.model.inference import load

    index = VolumeIndex.load(folder)
    if not (Path(index.model) / "config.yaml").is_file():
        raise ValueError(
            f"{folder} was made with the model {index.model or '(not saved)'}, which is not there: put it back, or run "
            "`vol3d embed` again"
        )
    if _digest(Path(index.model)) != index.weights:
        raise ValueError(
            f"{index.model} has other weights than {folder} was made with: run `vol3d embed` again, vectors of two "
            "models cannot be compared"
        )
    sees = is_image(query)
    model = load(index.model, device=device)
    vector = model.embed(query) if sees else model.embed_text(str(query))
    return index.search(vector.float().cpu().numpy(), k)


def is_image(query: Tensor | str | Path) -> bool:
    """Whether a query is a volume, not words.

    Raises:
        ValueError: an empty text, or a path at which nothing lies.
    """
    if not isinstance(query, (str, Path)):
        return True
    if isinstance(query, str) and not query.strip():
        raise ValueError("the query is empty: give a volume's path, or words to search for")
    if len(str(query)) < 1024 and Path(query).exists():
        return True
    if isinstance(query, Path) or query.lower().endswith(_IMAGE_ENDINGS):
        raise ValueError(f"{query}: no such file or folder; give a volume that exists, or words to search for")
    return False


def _digest(folder: Path) -> str:
    with open(folder / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


# --- searchers ----------------------------------------------------------------------------------------------


class _Flat:
    """Every vector compared, in NumPy: what faiss' flat index does."""

    def __init__(self, vectors: ndarray) -> None:
        self.vectors = vectors

    def search(self, query: ndarray, k: int) -> tuple[ndarray, ndarray]:
        scores = query @ self.vectors.T
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, axis=1)
        return np.take_along_axis(scores, best, axis=1), best


def _faiss(kind: Kind) -> Any:
    if importlib.util.find_spec("faiss") is None:
        raise ImportError(f"an index of kind {kind!r} needs faiss: pip install 'vol3d[search]'")
    import faiss

    return faiss


def _searcher(vectors: ndarray, kind: Kind) -> Any:
    if kind == "exact":
        return _flat(vectors)
    faiss = _faiss(kind)
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 128, 256
    index.add(vectors)
    return index


def _flat(vectors: ndarray) -> Any:
    if importlib.util.find_spec("faiss") is None:
        return _Flat(vectors)
    index = _faiss("exact").IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def _write_searcher(searcher: Any, kind: Kind, folder: Path) -> None:
    if kind != "exact":
        _faiss(kind).write_index(searcher, str(folder / "index.faiss"))
        return
    vectors = searcher.vectors if isinstance(searcher, _Flat) else searcher.reconstruct_n(0, searcher.ntotal)
    np.save(folder / "vectors.npy", vectors)


def _read_searcher(folder: Path, kind: Kind) -> Any:
    if kind == "exact":
        return _flat(np.load(folder / "vectors.npy", allow_pickle=False))
    return _faiss(kind).read_index(str(folder / "index.faiss"))
