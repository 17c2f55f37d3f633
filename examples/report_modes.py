"""Four ways to write a report: whole, organ by organ, findings then impression, and as JSON that always parses.

    python examples/report_modes.py [OUT]

The model is random, so the words mean nothing; the JSON is valid all the same, because every token is one that the
schema allows.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

import vol3d
from vol3d import tasks
from vol3d.data.batch import collate
from vol3d.data.cache import sample
from vol3d.text.structured import structured, to_json

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
findings = ["pleural effusion", "renal cyst", "ascites"]
manifest = vol3d.Manifest.read(vol3d.phantom.write(out / "data", studies=6, shape=(32, 32, 16), findings=findings))
reports = [study.report for study in manifest]

torch.manual_seed(0)
model = vol3d.VolumeLM(
    vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=1, num_heads=2),
    partial(vol3d.PerceiverProjector, num_latents=8, num_heads=2),
    vol3d.LanguageModel.scratch(reports, embed_dim=48, depth=1, num_heads=2),
).eval()
grid = vol3d.Grid(spacing=(12.5, 12.5, 26), shape=(32, 32, 16), window=[(-160, 240)], name="example")
batch = collate([sample(study, grid) for study in manifest[:2]])
features = model.encode(grid.window_hu(batch.image), batch.affine)

modes = {
    "whole": tasks.ReportGeneration(model, max_new_tokens=12),
    "organs": tasks.OrganReports(model, organs=["lower thorax", "kidneys"], max_new_tokens=8),
    "two steps": tasks.FindingsThenImpression(model, max_new_tokens=8),
    "json": tasks.StructuredReport(model, findings=findings, max_new_tokens=160),
}
for name, task in modes.items():
    learnt, written = task.loss(model, features, batch), task.predict(model, features, batch)[0]
    print(f"{name}: loss {learnt.loss.detach():.2f} over {learnt.count} studies, writes {written}")

print("what the JSON learns from:", to_json(structured(reports[0])))
