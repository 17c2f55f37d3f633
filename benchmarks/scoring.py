"""10,000 studies' predictions scored with intervals: reports, closed questions and codes, no volume read.

    python benchmarks/scoring.py --studies 10000

Predictions are synthetic: the truth with a tenth of its findings dropped and a few invented. Printed are the seconds of
each block, with 1000 bootstrap draws, and their sum. The target is two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
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
    blocks = {"report": _reports, "vqa": _questions, "codes": _codes}
    seconds, cpu_s = {}, 0.0
    for name, block in blocks.items():
        score = block(options.studies, patients, options.replicates, rng)
        start, spent = time.perf_counter(), time.process_time()
        score()
        cpu_s += time.process_time() - spent
        seconds[name] = round(time.perf_counter() - start, 1)
    total = round(sum(seconds.values()), 1)
    result = {
        "studies": options.studies,
        "replicates": options.replicates,
        "seconds": seconds,
        "total_s": total,
        "cpu_s": round(cpu_s, 1),
    }
    sys.stdout.write(json.dumps(result) + "\n")


Score = Callable[[], Any]


def _reports(studies: int, patients: list[str], replicates: int, rng: np.random.Generator) -> Score:
    from vol3d.evaluation.metrics.report import score_reports

    def text(present: np.ndarray, number: int) -> str:
        said = [
            f"There is {('small', 'moderate', 'large')[number % 3]} {name}."
            for name, there in zip(FINDINGS, present, strict=True)
            if there
        ]
        body = " ".join(said) or "No abnormality."
        normal = (
            "The pancreas and adrenal glands are unremarkable. No lymphadenopathy. The bowel is of normal calibre. "
        )
        return f"FINDINGS:\nThe exam of case {number} is complete. {normal * 3}{body}\n\nIMPRESSION:\n{body}"

    truth = rng.random((studies, len(FINDINGS))) < 0.25
    output = (truth & (rng.random(truth.shape) < 0.9)) | (rng.random(truth.shape) < 0.03)
    texts = [[text(row, number) for number, row in enumerate(side)] for side in (truth, output)]
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


if __name__ == "__main__":
    main()
