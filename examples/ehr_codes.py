"""Learn diagnosis codes from ICD-10-CM labels: rolled up to phecodes, unknown left out, parents as likely as children.

    python examples/ehr_codes.py [OUT]

Ten steps teach nothing; `recipes/cpu/ehr_codes.yaml` does.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import lightning

import vol3d
from vol3d.text.codes import parents, unknown_codes
from vol3d.text.phecodes import read_map, read_vocabulary
from vol3d.training.callbacks import SaveModel

# Codes are checked by how they are written, mapped, and rolled up.
print(unknown_codes(["J90", "K80.20", "pneumonia"], "icd10cm"), "is no code of ICD-10-CM")
print("K40.20 is phecode", *read_map("findings").phecodes("K40.20", "icd10cm"), "under", *parents("550.1"))
print(f"Merlin's vocabulary has {len(read_vocabulary('merlin'))} phecodes")

# The phantoms' manifest holds ICD-10-CM codes; the task learns phecodes, and 550 as the parent of 550.1.
out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
findings = ["pleural effusion", "ascites", "inguinal hernia"]
manifest = vol3d.phantom.write(out / "data", studies=16, shape=(64, 64, 32), findings=findings, split=(10, 3, 3))
grid = vol3d.Grid(spacing=(6.25, 6.25, 13), shape=(64, 64, 32), window=[(-1000, 1000), (-160, 240)], name="example")

module = vol3d.VolumeModule(
    encoder=vol3d.encoders.create("vit3d-tiny", in_channels=grid.channels, embed_dim=96, depth=2, num_heads=2),
    tasks={"codes": partial(vol3d.tasks.EHRCodes, codes=["507", "572", "550", "550.1"], min_positives=1)},
)
trainer = lightning.Trainer(
    max_steps=10, accelerator="cpu", logger=False, default_root_dir=out, callbacks=[SaveModel(out)]
)
trainer.fit(module, vol3d.VolumeData(manifest, grid, batch_size=4, in_memory=True))

model = vol3d.load(out / "model")
unseen = vol3d.Manifest.read(manifest).split("test")[0]
print(f"recorded {unseen.codes}; said {model.codes(unseen.image)}")
