"""Outline organs and findings by words, a click or a box, and bring the mask back to the file's own grid.

    python examples/outline_by_words.py [OUT]

A few steps teach nothing; the recipe cpu/prompt_segmentation.yaml does.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import lightning

import vol3d
from vol3d.training.callbacks import SaveModel

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
manifest = vol3d.phantom.write(out / "data", studies=8, shape=(64, 64, 32), split=(6, 0, 2))
grid = vol3d.Grid(spacing=(6.25, 6.25, 13), shape=(56, 48, 32), window=[(-1000, 1000), (-160, 240)], name="example")

module = vol3d.VolumeModule(
    encoder=vol3d.encoders.create("vit3d-tiny", in_channels=2, embed_dim=48, depth=1, num_heads=2, stem="conv"),
    tasks={"masks": partial(vol3d.tasks.PromptSegmentation, prompts=4, dim=32, depth=1, num_heads=2, pixel_dim=8)},
)
data = vol3d.VolumeData(manifest, grid, batch_size=2, in_memory=True)
trainer = lightning.Trainer(
    max_steps=3, accelerator="cpu", logger=False, default_root_dir=out, callbacks=[SaveModel(out)]
)
trainer.fit(module, data)

model = vol3d.load(out / "model")
study = vol3d.Manifest.read(manifest).split("test")[0]
ct = vol3d.read(study.image)
options = {"presence": 0.0}  # after three steps the model believes in nothing; leave this out of a trained one
for prompt, shown in (
    ("left lung", {}),
    ("fluid in the right pleural space", {}),
    ("", {"points": [(-60, 0, 100)]}),  # RAS millimetres: 60 mm to the left
    ("liver", {"box": (0, -60, -60, 110, 70, 60), "negative_points": [(-60, 0, 100)]}),
):
    mask = model.segment(ct, prompt, **shown, **options)
    print(f"{prompt or 'a click':34} {tuple(mask.shape)} {int(mask.sum())} voxels on the file's own grid")
vol3d.write(mask, out / "liver.nii.gz")
