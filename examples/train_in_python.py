"""Train a report writer without YAML: put the parts together, a few steps, save, load, write a report.

    python examples/train_in_python.py [OUT]

Ten steps teach nothing; 1000 on 800 studies do (`vol3d demo`).
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import lightning

import vol3d
from vol3d.model.language import Scratch
from vol3d.training.callbacks import SaveModel
from vol3d.training.stages import Stage

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
findings = ["pleural effusion", "cardiomegaly", "ascites"]
manifest = vol3d.phantom.write(out / "data", studies=12, shape=(64, 64, 32), findings=findings, split=(10, 0, 2))

grid = vol3d.Grid(spacing=(6.25, 6.25, 13), shape=(64, 64, 32), window=[(-1000, 1000), (-160, 240)], name="example")
data = vol3d.VolumeData(manifest, grid, batch_size=4, in_memory=True)

module = vol3d.VolumeModule(
    encoder=vol3d.encoders.create("vit3d-tiny", in_channels=grid.channels, embed_dim=96, depth=2, num_heads=2),
    projector=partial(vol3d.PerceiverProjector, num_latents=16, num_heads=4),  # widths are filled in
    language=Scratch(embed_dim=96, depth=2, num_heads=4),  # built when fitting starts, on the training reports
    tasks={
        "findings": partial(vol3d.tasks.FindingMaps, findings=["left pleural effusion", "cardiomegaly", "ascites"]),
        "report": partial(vol3d.tasks.ReportGeneration, max_new_tokens=40),
    },
    stages={
        "see": Stage(steps=4, tasks=["findings"], train=["encoder", "tasks"], learning_rate=1e-3),
        "speak": Stage(tasks=["report"], train=["projector", "language"], learning_rate=1e-3),
    },
)
trainer = lightning.Trainer(
    max_steps=10, accelerator="cpu", logger=False, default_root_dir=out, callbacks=[SaveModel(out)]
)
trainer.fit(module, data)

model = vol3d.load(out / "model")  # carries its grid: any CT goes in as it is
ct = vol3d.Manifest.read(manifest).split("test")[0].image
print(f"report after 10 steps: {model.report(ct)!r}")
