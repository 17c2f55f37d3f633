"""Learn to match each organ's tokens with what the report says of that organ, then ask for findings organ by organ.

    python examples/organ_by_organ.py [OUT]

Eight steps teach nothing; the recipe `cpu/regions.yaml` does, in minutes.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import lightning

import vol3d
from vol3d.tasks.regions import ORGANS
from vol3d.text.sections import split_organs
from vol3d.training.callbacks import SaveModel

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
findings = ["pleural effusion", "cardiomegaly", "splenomegaly"]
manifest = vol3d.phantom.write(out / "data", studies=12, shape=(64, 64, 32), findings=findings, split=(8, 2, 2))

# What is matched: a section of the report, and the tokens that the mask's organs of that section touch.
study = vol3d.Manifest.read(manifest)[0]
for organ, text in split_organs(study.findings).items():
    print(f"{organ} ({', '.join(ORGANS.get(organ, ['no mask']))}): {text}")

grid = vol3d.Grid(spacing=(6.25, 6.25, 13), shape=(64, 64, 32), window=[(-1000, 1000), (-160, 240)], name="example")
task = partial(
    vol3d.tasks.Regions,
    findings=["left pleural effusion", "cardiomegaly", "splenomegaly"],
    text_encoder={"embed_dim": 64, "depth": 1, "num_heads": 2},  # or a Hugging Face name
    embed_dim=64,
    queries=4,
)
module = vol3d.VolumeModule(
    encoder=vol3d.encoders.create("vit3d-tiny", in_channels=grid.channels, embed_dim=64, depth=1, num_heads=2),
    tasks={"regions": task},
)
trainer = lightning.Trainer(
    max_steps=8, accelerator="cpu", logger=False, default_root_dir=out, callbacks=[SaveModel(out)]
)
trainer.fit(module, vol3d.VolumeData(manifest, grid, batch_size=4, in_memory=True))

# A new study needs no mask: each organ's queries have learnt to find it.
model = vol3d.load(out / "model")
unseen = vol3d.Manifest.read(manifest).split("test")[0]
print("before calibration:", model.predict([model.sample(unseen.image)])[0]["regions"])
