"""Features on the disk: the same losses, each study encoded once, and none of another encoder, grid or image."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import world
from torch.utils.data import DataLoader

import vol3d
from vol3d.data.batch import Batch, collate
from vol3d.data.cache import sample
from vol3d.data.manifest import Manifest
from vol3d.model.interfaces import Encoder, Features
from vol3d.model.pretrained import save
from vol3d.model.volume_lm import VolumeLM
from vol3d.training.features import FeatureStore, StoredFeatures, fingerprint, prepare_features
from vol3d.training.stages import Stage
from vol3d.volume.grid import Grid

STAGES = {"find": Stage(None, ["findings"], ["tasks"], 1e-3)}
GRID = Grid(name="small", spacing=(13.0, 13.0, 26.0), shape=(16, 16, 8))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    return vol3d.phantom.write(folder, studies=10, seed=3, shape=(32, 32, 16), split=(8, 1, 1))


def encoder() -> Encoder:
    torch.manual_seed(0)
    return vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=1, num_heads=2, patch_size=(4, 4, 2)).eval()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model", VolumeLM(encoder()), {}, GRID)


class Phantoms(world.World):
    """The phantoms' training studies on the grid."""

    def __init__(self, manifest: Path) -> None:
        studies = [replace(study, finding_labels=LABELS) for study in Manifest.read(manifest).split("train")]
        super().__init__([sample(study, GRID) for study in studies])
        self.grid = GRID

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=4, collate_fn=collate)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return replace(batch, image=self.grid.window_hu(batch.image))


LABELS = {name: 1 + index for index, name in enumerate(world.FINDINGS)}


def fit(manifest: Path, folder: Path, *, cache: Path | None, encode: Any = None) -> tuple[list[float], int]:
    """Losses of six steps with a frozen encoder, and how many volumes it encoded."""
    module = world.module(STAGES, feature_cache_gb=1e-9)  # no room in memory: every visit asks the disk
    module.encoder = encode or encoder()
    seen: list[int] = []
    module.encoder.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    losses = world.Losses()
    callbacks = [losses] if cache is None else [losses, StoredFeatures(cache)]
    world.trainer(6, folder, callbacks=callbacks).fit(module, Phantoms(manifest))
    return losses.values, sum(seen)


def test_training_reads_what_was_prepared_and_learns_the_same(manifest: Path, model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = prepare_features(manifest, model, cache, batch_size=3)
    assert (first.studies, first.made, first.ready, first.failed) == (8, 8, 0, 0), "only training reads features"
    again = prepare_features(manifest, model, cache)
    assert (again.made, again.ready) == (0, 8)
    plain, encoded = fit(manifest, tmp_path, cache=None)
    assert encoded == 6 * 4
    read, encoded = fit(manifest, tmp_path, cache=cache)
    assert encoded == 0
    assert read == pytest.approx(plain, abs=1e-5)
    assert len(set(read)) == 6


def test_another_encoder_never_reads_them(manifest: Path, model: Path, tmp_path: Path) -> None:
    prepare_features(manifest, model, tmp_path / "cache")
    other = encoder()
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    assert fit(manifest, tmp_path, cache=tmp_path / "cache", encode=other)[1] == 6 * 4


def test_a_key_follows_image_grid_window_precision_and_weights(manifest: Path, tmp_path: Path) -> None:
    made, study = encoder(), Manifest.read(manifest)[0]
    store = FeatureStore(tmp_path, made, GRID)
    features = Features(torch.randn(1, 5, 48), (5, 1, 1), torch.eye(4, dtype=torch.float64)[None])
    store.put(study, features)
    found = store.get(study)
    assert found is not None
    torch.testing.assert_close((found.tokens, found.affine), (features.tokens, features.affine), rtol=0, atol=0)
    assert found.grid_size == (5, 1, 1)
    others = {
        "window": FeatureStore(tmp_path, made, replace(GRID, window=(-160.0, 240.0))),
        "grid": FeatureStore(tmp_path, made, replace(GRID, spacing=(12.0, 13.0, 26.0))),
        "precision": FeatureStore(tmp_path, made, GRID, "bf16-mixed"),
    }
    assert {name for name, other in others.items() if other.get(study) is not None} == set()
    assert store.get(replace(study, image=Manifest.read(manifest)[1].image)) is None
    with torch.no_grad():
        next(made.parameters()).add_(1e-3)
    assert store.get(study) is not None, "weights are looked at again when a stage begins, not at every visit"
    store.forget()
    assert store.get(study) is None


def test_heads_that_leave_the_weights_as_they_are_change_the_fingerprint() -> None:
    """The number of attention heads is no weight, and decides what comes out."""
    torch.manual_seed(0)
    other = vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=1, num_heads=4, patch_size=(4, 4, 2)).eval()
    assert [p.shape for p in other.parameters()] == [p.shape for p in encoder().parameters()]
    assert fingerprint(other) != fingerprint(encoder()) == fingerprint(encoder())


def test_a_batch_of_none_is_refused(manifest: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a batch of 0: ask for 1 or more"):
        prepare_features(manifest, model, tmp_path / "cache", batch_size=0)


def test_a_broken_file_and_a_broken_study(manifest: Path, model: Path, tmp_path: Path) -> None:
    studies = list(Manifest.read(manifest).split("train")[:2])
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    rows = Manifest([studies[0], replace(studies[1], image=tmp_path / "bad.nii.gz")], manifest)
    report = prepare_features(rows, model, tmp_path / "cache")
    assert (report.made, report.failed) == (1, 1)
    assert report.failures is not None
    assert studies[1].study in report.failures.read_text()
    store = FeatureStore(tmp_path / "cache", encoder(), GRID)
    path = store.path(studies[0])
    assert path is not None
    path.write_bytes(path.read_bytes()[:100])
    assert store.get(studies[0]) is None
