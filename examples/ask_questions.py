"""Questions about CTs: write them from labels and masks, train on them, and ask, alone or in a conversation.

    python examples/ask_questions.py [OUT]

Eight steps teach nothing; recipes/cpu/vqa.yaml does.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import lightning

import vol3d
from vol3d.data.questions import add_questions
from vol3d.model.language import Scratch
from vol3d.training.callbacks import SaveModel
from vol3d.training.stages import Stage

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
findings = ["pleural effusion", "renal cyst", "ascites"]
written = vol3d.phantom.write(out / "data", studies=10, shape=(32, 32, 16), findings=findings, split=(8, 0, 2))

# Questions from what the rows and the masks tell: is it there, on which side, how many, how large, where.
manifest = add_questions(vol3d.Manifest.read(written), overwrite=True)
for row in manifest[0].questions[:4]:
    print(row["kind"], "|", row["question"], "|", row["answer"], "|", row.get("choices", "open"))

grid = vol3d.Grid(spacing=(12.5, 12.5, 26), shape=(32, 32, 16), window=[(-160, 240)], name="example")
module = vol3d.VolumeModule(
    encoder=vol3d.encoders.create("vit3d-tiny", in_channels=1, embed_dim=48, depth=1, num_heads=2),
    projector=partial(vol3d.PerceiverProjector, num_latents=8, num_heads=2),
    language=Scratch(embed_dim=48, depth=1, num_heads=2),
    tasks={"vqa": partial(vol3d.tasks.VQA, per_study=4, history=1, max_new_tokens=8)},
    stages={"answer": Stage(tasks=["vqa"], learning_rate=1e-3)},
)
trainer = lightning.Trainer(
    max_steps=8, accelerator="cpu", logger=False, default_root_dir=out, callbacks=[SaveModel(out)]
)
trainer.fit(module, vol3d.VolumeData(manifest, grid, batch_size=4, in_memory=True))

model = vol3d.load(out / "model")
ct = manifest.split("test")[0].image
print(model.ask(ct, "Is there ascites?", ["yes", "no"]), "|", repr(model.ask(ct, "Where is the renal cyst?")))

# The task itself tells the scores of all choices, and takes what was said before.
features = model.model.encode(model.grid.window_hu(model.sample(ct).hu[None]))
question, choices = "On which side is the pleural effusion?", ["left", "right", "both", "neither"]
said = [("Is there a pleural effusion?", "yes")]
print(model.tasks["vqa"].answer(model.model, features, [question], [choices], history=said)[0])
