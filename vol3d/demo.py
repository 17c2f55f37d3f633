"""`vol3d demo`: phantoms → train → evaluate → page, on a CPU and offline."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FINDINGS = (
    "pleural effusion",
    "pneumothorax",
    "consolidation",
    "cardiomegaly",
    "aortic aneurysm",
    "hepatic steatosis",
    "splenomegaly",
    "ascites",
    "bowel obstruction",
    "inguinal hernia",
)
"""The demo's ten findings; pleural effusion, pneumothorax, consolidation and inguinal hernia exist on both sides."""

SHAPE = (64, 64, 32)
PREVALENCE = 0.2


@dataclass(frozen=True)
class DemoResult:
    """The demo's scores, time and memory as data, and as lines for a terminal."""

    data: dict[str, Any]
    text: str


def demo(
    out: str | Path = "runs/demo",
    *,
    seed: int = 0,
    train: int = 1600,
    validation: int = 40,
    test: int = 160,
    twins: int = 60,
    overrides: Sequence[str] = (),
) -> DemoResult:
    """Make phantoms, train by the recipe quickstart.yaml, evaluate on unseen phantoms, write the page.

    Leaves `OUT/data` (phantoms), `OUT/model`, `OUT/checkpoints`, `OUT/metrics.csv` and `OUT/evaluation`.

    Args:
        train, validation, test: studies of each split. twins: pairs that differ in one finding.
        overrides: further options of the recipe ("--trainer.max_steps=10").

    Returns:
        the scores as data and as text.
    """
    from vol3d import phantom
    from vol3d.data.manifest import Manifest
    from vol3d.evaluation.run import evaluate
    from vol3d.evaluation.summary import summary

    _use_half_the_cores()
    out = Path(out)
    start = time.perf_counter()
    _say(f"1/3  phantoms: {train} to learn from, {test} unseen, {twins} pairs of twins")
    manifest = phantom.write(
        out / "data",
        studies=train + validation + test,
        seed=seed,
        shape=SHAPE,
        findings=FINDINGS,
        prevalence=PREVALENCE,
        split=(train, validation, test),
        twins=twins,
        workers=2,
        progress=True,
    )
    _say("2/3  training: first see (where each finding lies), then speak (the report)")
    _fit(out, manifest, seed, overrides)
    _say("3/3  evaluation on unseen phantoms")
    result = evaluate(
        out / "model",
        manifest,
        out=out / "evaluation",
        batch_size=40,
        overwrite=True,
        progress=True,
    )
    unseen = Manifest.read(manifest).split("test")[0].image
    unseen = unseen.relative_to(Path.cwd()) if unseen.is_relative_to(Path.cwd()) else unseen
    seconds, memory = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    text = (
        f"\n{summary(result)}\n\ndemo: {seconds / 60:.1f} minutes, {memory:.1f} GB at most\n"
        f"page:   {out / 'evaluation' / 'evaluation.html'}\nmodel:  {out / 'model'}\n"
        f"try:    vol3d report {out / 'model'} {unseen}"
    )
    data = {"seconds": round(seconds, 1), "peak_memory_gb": round(memory, 2), "evaluation": result}
    return DemoResult(data, text)


def _use_half_the_cores() -> None:
    """Unless the user has said otherwise: steps this small wait for their slowest thread, and on a machine that others
    use too, a thread on every core is several times slower than half of them."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))


def _fit(out: Path, manifest: Path, seed: int, overrides: Sequence[str]) -> None:
    from vol3d.training.cli import run

    options = [f"--run={out}", f"--data.manifest={manifest}", f"--seed_everything={seed}", *overrides]
    run(["fit", "--config", "quickstart.yaml", *options])


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
