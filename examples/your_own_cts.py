"""From a folder of CTs and a table of reports to a manifest, an audit, and a training run.

    python examples/your_own_cts.py [OUT]

Your files are played by phantoms here: CTs in `scans/`, and `reports.csv` with your own column names.
"""

import csv
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import vol3d
from vol3d.data.doctor import doctor
from vol3d.training.cli import run

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
source = vol3d.Manifest.read(vol3d.phantom.write(out / "played", studies=10, shape=(64, 64, 32)))
(out / "scans").mkdir(parents=True, exist_ok=True)
with (out / "reports.csv").open("w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["accession", "person", "text"])
    for study in source:
        (out / "scans" / f"{study.study}.nii.gz").write_bytes(study.image.read_bytes())
        table.writerow([study.study, study.patient, study.report])

# One row a study. Splits go by patient: all exams of one person belong in one split.
rows = []
with (out / "reports.csv").open(newline="") as file:
    for number, cells in enumerate(csv.DictReader(file)):
        image = f"scans/{cells['accession']}.nii.gz"
        row = {"study": cells["accession"], "image": image, "patient": cells["person"], "report": cells["text"]}
        rows.append({**row, "split": "test" if number % 5 == 0 else "train"})
manifest = out / "manifest.jsonl"
manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))

print(vol3d.Manifest.read(manifest))  # every row is checked; what is wrong is named with its remedy
for (severity, message), count in Counter((note["severity"], note["message"]) for note in doctor(manifest)).items():
    print(f"{severity}: {message} ({count} times)")

# The shipped recipe, made small enough for seconds; `vol3d fit --config …` takes the same options.
options = ["--trainer.max_steps=4", "--model.encoder.init_args.depth=1", "--data.batch_size=4"]
options += ["--model.stages={speak: {tasks: [report], learning_rate: 0.001}}", "--trainer.limit_val_batches=0"]
run(["fit", "--config", "quickstart.yaml", f"--data.manifest={manifest}", f"--run={out / 'run'}", *options])
print(
    f"model: {out / 'run' / 'model'}\nnext:  vol3d evaluate {out / 'run' / 'model'} {manifest} --out {out / 'scores'}"
)
