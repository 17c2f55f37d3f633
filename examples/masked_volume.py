"""Pre-train an encoder without labels by filling in hidden patches, then start a task from its weights.

    python examples/masked_volume.py [OUT]

Ten steps teach nothing; `recipes/cpu/masked_volume.yaml` does.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import lightning

import vol3d
from vol3d.model.interfaces import Encoder
from vol3d.training.callbacks import SaveModel

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
manifest = vol3d.phantom.write(out / "data", studies=12, shape=(64, 64, 32), split=(10, 0, 2))
grid = vol3d.Grid(spacing=(6.25, 6.25, 13), shape=(64, 64, 32), window=[(-1000, 1000), (-160, 240)], name="example")
data = vol3d.VolumeData(manifest, grid, batch_size=4, in_memory=True)
small = {"in_channels": grid.channels, "embed_dim": 96, "depth": 2, "num_heads": 2}


def fit(encoder: Encoder, tasks: dict, folder: Path) -> None:
    """Ten steps, and the model they leave."""
    trainer = lightning.Trainer(
        max_steps=10, accelerator="cpu", logger=False, default_root_dir=folder, callbacks=[SaveModel(folder)]
    )
    trainer.fit(vol3d.VolumeModule(encoder=encoder, tasks=tasks), data)


fill = partial(vol3d.tasks.MaskedVolume, ratio=0.6, pool=(2, 2, 1))  # no label is read
fit(vol3d.encoders.create("vit3d-tiny", **small), {"fill": fill}, out / "pretrained")
pretrained = vol3d.load(out / "pretrained" / "model")
unseen = vol3d.Manifest.read(manifest).split("test")[0]
print("error of the hidden voxels:", pretrained.predict([pretrained.sample(unseen)])[0]["masked_volume"])

encoder = vol3d.encoders.create("vit3d-tiny", **small)
encoder.load_state_dict(pretrained.model.encoder.state_dict())
fit(encoder, {"codes": partial(vol3d.tasks.EHRCodes, codes=["507", "572"])}, out / "codes")
print(vol3d.load(out / "codes" / "model").codes(unseen.image))
