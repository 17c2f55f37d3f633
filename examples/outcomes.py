"""Learn the risk of an event in each of five years, from patients of whom some are lost to follow-up.

    python examples/outcomes.py [OUT]

Ten steps teach nothing; `recipes/cpu/outcomes.yaml` does.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import lightning

import vol3d
from vol3d.model.interfaces import Evidence
from vol3d.training.callbacks import SaveModel

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
findings = ["pleural effusion", "bowel obstruction", "ascites"]
manifest = vol3d.phantom.write(out / "data", studies=30, shape=(64, 64, 32), findings=findings, split=(15, 0, 15))
for study in vol3d.Manifest.read(manifest).split("train")[:3]:
    print(study.study, study.outcomes["admission"])  # event 0: last seen without it on that day

grid = vol3d.Grid(spacing=(6.25, 6.25, 13), shape=(64, 64, 32), window=[(-1000, 1000), (-160, 240)], name="example")
module = vol3d.VolumeModule(
    encoder=vol3d.encoders.create("vit3d-tiny", in_channels=grid.channels, embed_dim=96, depth=2, num_heads=2),
    tasks={
        "outcomes": partial(vol3d.tasks.Outcomes, outcomes=["admission"]),  # hazards of five years
        # Merlin's form: within five years or not, and unknown for who was lost before.
        "five_years": partial(vol3d.tasks.Outcomes, outcomes=["admission"], days=[1826], form="cumulative"),
    },
)
trainer = lightning.Trainer(
    max_steps=10, accelerator="cpu", logger=False, default_root_dir=out, callbacks=[SaveModel(out)]
)
trainer.fit(module, vol3d.VolumeData(manifest, grid, batch_size=4, in_memory=True))

model = vol3d.load(out / "model")
unseen = vol3d.Manifest.read(manifest).split("test")
told = model.predict([model.sample(study) for study in unseen], [model.tasks["outcomes"]])
risks = told[0]["outcomes"]["admission"]
print("risk by day:", dict(zip(risks["days"], risks["cumulative"], strict=True)))

evidence = Evidence(list(unseen), {row["study"]: row for row in told}, replicates=200)
print("C-index:", model.tasks["outcomes"].score(evidence)["outcomes"]["c_index"])
