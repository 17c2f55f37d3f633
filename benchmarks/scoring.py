"""10,000 studies' predictions scored with intervals: reports, questions, codes, retrieval and outcomes, no volume read.

    python benchmarks/scoring.py --studies 10000

Predictions are synthetic: reports as phantoms have them, written twice in other words, the second with a tenth of the
findings dropped and a few invented. Printed are the seconds and CPU seconds of each block with 1000 bootstrap draws, in
one process. The target is two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

FINDINGS = ("left pleural effusion", "right pleural effusion", "ascites", "splenomegaly", "cardiomegaly", "gallstones")
CODES = 100


def main() -> None:
    """Time each block and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--replicates", type=int, default=1000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    patients = [f"p{number}" for number in rng.integers(0, int(0.8 * options.studies), options.studies)]
    blocks = {"report": _reports, "vqa": _questions, "codes": _codes, "retrieval": _retrieval, "outcomes": _outcomes}
    seconds, cpu = {}, {}
    for name, block in blocks.items():
        score = block(options.studies, patients, options.replicates, rng)
        start, spent = time.perf_counter(), time.process_time()
        score()
        cpu[name] = round(time.process_time() - spent, 1)
        seconds[name] = round(time.perf_counter() - start, 1)
    result = {
        "studies": options.studies,
        "replicates": options.replicates,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "total_s": round(sum(seconds.values()), 1),
        "total_cpu_s": round(sum(cpu.values()), 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    sys.stdout.write(json.dumps(result) + "\n")


Score = Callable[[], Any]


def _reports(studies: int, patients: list[str], replicates: int, rng: np.random.Generator) -> Score:
    from vol3d.evaluation.metrics.report import score_reports
    from vol3d.phantom.report import write_report
    from vol3d.text.ontology import FINDINGS, KEYS, Finding

    def text(present: np.ndarray, seed: int) -> str:
        found = []
        for place in np.flatnonzero(present):
            side, _, name = KEYS[place].partition(" ")
            name, side = (name, side) if name in FINDINGS else (KEYS[place], None)
            size = float(rng.integers(5, 60)) if FINDINGS[name].measured else None
            found.append(Finding(name, side=side, size_mm=size))
        return write_report(found, seed=seed).text

    truth = rng.random((studies, len(KEYS))) < 0.15
    output = (truth & (rng.random(truth.shape) < 0.9)) | (rng.random(truth.shape) < 0.02)
    texts = [
        [text(row, 2 * number + side) for number, row in enumerate(table)] for side, table in enumerate((truth, output))
    ]
    return lambda: score_reports(*texts, patients, replicates=replicates)


def _questions(studies: int, patients: list[str], replicates: int, rng: np.random.Generator) -> Score:
    from vol3d.evaluation.metrics.vqa import score_questions

    asked = [
        {"question": f"Is there {name}?", "answer": "yes", "choices": ["yes", "no"], "kind": "presence"}
        for name in FINDINGS[:4]
    ]
    questions = {f"s{number}": asked for number in range(studies)}
    answers = {
        name: [{"answer": "yes" if right else "no"} for right in rng.random(len(asked)) < 0.8] for name in questions
    }
    whose = dict(zip(questions, patients, strict=True))
    return lambda: score_questions(questions, answers, whose, blind=answers, replicates=replicates)


def _codes(studies: int, patients: list[str], replicates: int, rng: np.random.Generator) -> Score:
    from vol3d.evaluation.metrics.codes import score_codes

    truth = (rng.random((studies, CODES)) < 0.1).astype(float)
    truth[rng.random(truth.shape) < 0.3] = np.nan
    said = 1 / (1 + np.exp(-rng.normal(2 * np.nan_to_num(truth) - 2, 1)))
    return lambda: score_codes(said, truth, patients, [str(code) for code in range(CODES)], replicates=replicates)


def _retrieval(studies: int, patients: list[str], replicates: int, rng: np.random.Generator) -> Score:
    from vol3d.evaluation.metrics.retrieval import score_retrieval

    images = rng.normal(size=(studies, 256))
    texts = images + rng.normal(0, 4, images.shape)
    return lambda: score_retrieval(images, texts, patients, other_pools=(1000,), replicates=replicates)


def _outcomes(studies: int, patients: list[str], replicates: int, rng: np.random.Generator) -> Score:
    from vol3d.evaluation.metrics.survival import score_outcomes

    risk = rng.normal(size=studies)
    days, followed = rng.exponential(1000 * np.exp(-risk)).round(), rng.uniform(100, 3000, studies).round()
    survival = {365: np.exp(-0.365 * np.exp(risk))}
    outcome = np.minimum(days, followed), days <= followed, risk, survival
    return lambda: score_outcomes({"death": outcome}, {"death": patients}, replicates=replicates)


if __name__ == "__main__":
    main()
