"""Learn volume ↔ report retrieval, index the studies, search with words and with a volume, ask for a finding.

    python examples/search_by_words.py [OUT]

Eight steps teach nothing; the recipe `cpu/zero_shot.yaml` does, in minutes.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import lightning

import vol3d
from vol3d.model.index import embed, search
from vol3d.training.callbacks import SaveModel

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
findings = ["pleural effusion", "cardiomegaly", "ascites"]
manifest = vol3d.phantom.write(out / "data", studies=12, shape=(64, 64, 32), findings=findings, split=(8, 2, 2))

grid = vol3d.Grid(spacing=(6.25, 6.25, 13), shape=(64, 64, 32), window=[(-1000, 1000), (-160, 240)], name="example")
task = partial(
    vol3d.tasks.ZeroShot,
    findings=["left pleural effusion", "cardiomegaly", "ascites"],
    text="report",
    equal="findings",  # two reports that say the same findings are no negatives of each other
    text_encoder={"embed_dim": 64, "depth": 1, "num_heads": 2},  # or a Hugging Face name, or "language"
    embed_dim=64,
    queries=8,
)
module = vol3d.VolumeModule(
    encoder=vol3d.encoders.create("vit3d-tiny", in_channels=grid.channels, embed_dim=64, depth=1, num_heads=2),
    tasks={"retrieval": task},
)
trainer = lightning.Trainer(
    max_steps=8, accelerator="cpu", logger=False, default_root_dir=out, callbacks=[SaveModel(out)]
)
trainer.fit(module, vol3d.VolumeData(manifest, grid, batch_size=4, in_memory=True))

index = embed(out / "model", manifest, out / "index")
print(f"{len(index)} studies, {index.dim} numbers each")
for query in ("There is a left pleural effusion.", vol3d.Manifest.read(manifest)[0].image):
    hits = search(out / "index", query, k=3)
    print(
        query if isinstance(query, str) else query.name, "→", [(hit["study"], round(hit["score"], 2)) for hit in hits]
    )

model = vol3d.load(out / "model")
study = vol3d.Manifest.read(manifest).split("test")[0]
print("before calibration:", model.predict([model.sample(study)])[0]["zero_shot"])
