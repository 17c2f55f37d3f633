"""Score reports of any model: two lists of texts are enough.

python examples/score_reports.py
"""

from vol3d.evaluation.metrics.report import score_reports
from vol3d.text.parser import finding_keys

truth = [
    "There is a large left pleural effusion. The heart is enlarged. No ascites.",
    "Small right pneumothorax. The liver is normal.",
    "No pleural effusion or pneumothorax. The gallbladder contains stones.",
    "Bilateral hydronephrosis. Moderate ascites.",
]
written = [
    "Large pleural effusion on the left. Cardiomegaly.",
    "Small left pneumothorax. The liver is normal.",  # the wrong side
    "Gallstones. No pneumothorax.",
    "Bilateral hydronephrosis.",  # the ascites is missed
]
for text in truth:
    print(sorted(finding_keys(text)))

scores = score_reports(truth, written, patients=["a", "b", "c", "d"])
for name in ("finding_f1", "finding_precision", "finding_recall", "laterality_accuracy", "rouge_l"):
    metric = scores[name]
    interval = "" if metric.get("low") is None else f"  ({metric['low']:.2f} to {metric['high']:.2f})"
    others = {kind: scores["baselines"][kind].get(name) for kind in ("blind", "always_normal")}
    print(f"{name:20} {metric['value']:.2f}{interval}  baselines: {others}")
