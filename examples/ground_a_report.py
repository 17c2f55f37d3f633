"""Boxes from phrases, names from boxes, and a report whose findings have a place in the volume.

    python examples/ground_a_report.py [OUT]

A few steps teach nothing; the recipe cpu/grounding.yaml does.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import lightning
import torch

import vol3d
from vol3d.data.batch import collate

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
manifest = vol3d.phantom.write(out / "data", studies=8, shape=(64, 64, 32), split=(6, 0, 2), prevalence=0.3)
grid = vol3d.Grid(spacing=(6.25, 6.25, 13), shape=(56, 48, 32), window=[(-1000, 1000), (-160, 240)], name="example")
names = ["left pleural effusion", "right pleural effusion", "ascites", "cardiomegaly"]

module = vol3d.VolumeModule(
    encoder=vol3d.encoders.create("vit3d-tiny", in_channels=2, embed_dim=48, depth=1, num_heads=2, stem="conv"),
    tasks={"boxes": partial(vol3d.tasks.Grounding, names=names, dim=32, depth=1, num_heads=2, pixel_dim=8)},
)
data = vol3d.VolumeData(manifest, grid, batch_size=2, in_memory=True)
trainer = lightning.Trainer(
    max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=out
)
trainer.fit(module, data)

model, task = module.model.eval(), module.tasks["boxes"].eval()
sample = data.dataset("test")[0]
batch = collate([sample])
batch.image = grid.window_hu(batch.image)
with torch.no_grad():
    features = model.encode(batch.image, batch.affine)
    box, present, mask = task.locate(model, features, batch, [["fluid in the left pleural space"]])
    print(f"box {[round(v) for v in box[0, 0].tolist()]} mm, present {present.item():.2f}, {int(mask.sum())} voxels")
    region = [-130, -90, -20, -60, -30, 100]  # x1, y1, z1, x2, y2, z2 in RAS mm
    print("what is this?", task.describe(model, features, batch, [[region]])[0][0]["answer"])
    report = "Small left pleural effusion. No pneumothorax. There is ascites."
    for row in task.ground(model, features, batch, [report], presence=0.0)[0]:
        print(f"{row['sentence']!r}: {row['label']} from {row['min_mm']} to {row['max_mm']} mm, {row['volume_ml']} ml")
