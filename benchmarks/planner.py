"""What `vol3d plan` tells of a recipe's memory against what its steps take, and how long planning lasts.

    python benchmarks/planner.py --json planner.json            # quickstart and all CPU recipes: minutes on a CPU
    python benchmarks/planner.py --tiny                         # the quickstart alone

A row a stage at the recipe's own batch size. `memory_ratio` is the planned peak over the measured one: PyTorch's
profiler records every allocation of a real step, weights and optimizer state are added. `ours_s` is the plan's share of
processor seconds, `peer_s` that of measuring. Planning uses no value of any weight, so its memory is a real step's.
"""

import argparse
import datetime
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

import vol3d
from vol3d.plan import first_samples, plan
from vol3d.training.recipe import RecipeParts

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import real_peaks  # noqa: E402

WITHIN = 0.15


def rows(name: str) -> list[dict[str, Any]]:
    """Every stage of one recipe; phantoms stand in for its studies."""
    recipe = ["--config", name, "--data.manifest", "no_manifest_here.jsonl", "--model.feature_cache_gb", "0"]
    start = time.process_time()
    told = plan(recipe, gpu_gb=24)
    planned = time.process_time()
    measured = real_peaks.peaks(recipe, first_samples(RecipeParts(recipe).datamodule))
    seconds = (planned - start) / len(told.stages), (time.process_time() - planned) / len(told.stages)
    found = []
    for stage in told.stages:
        ratio = stage.total / measured[stage.stage]
        found.append({
            "work": f"{name}, {stage.stage}, batch {stage.batch_size}", "peer": "peak of a real step",
            "ours_s": round(seconds[0], 2), "peer_s": round(seconds[1], 2), "ratio": round(seconds[0] / seconds[1], 2),
            "memory_ratio": round(ratio, 3), "planned_mb": round(stage.total / 1e6, 1),
            "measured_mb": round(measured[stage.stage] / 1e6, 1), "within": WITHIN, "met": abs(ratio - 1) <= WITHIN,
        })  # fmt: skip
        row = found[-1]
        print(f"{row['work']:50} {row['planned_mb']:8} MB planned, {row['measured_mb']:8} measured: {ratio:.3f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--tiny", action="store_true", help="the quickstart alone")
    parser.add_argument("recipes", nargs="*", help="default: the quickstart and all CPU recipes")
    arguments = parser.parse_args()
    every = [f"cpu/{path.name}" for path in sorted((ROOT / "recipes" / "cpu").glob("*.yaml"))]
    names = arguments.recipes or ["quickstart.yaml", *([] if arguments.tiny else every)]
    report = {
        "rows": [row for name in names for row in rows(name)],
        "date": datetime.date.today().isoformat(), "device": "cpu",
        "machine": platform.machine(), "threads": torch.get_num_threads(),
        "vol3d": vol3d.__version__, "torch": torch.__version__,
    }  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
