"""Nothing is left on the CPU: steps and predictions hold on a device that only pretends to be there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
# Of the CPU recipes those that together have every task; a process for three.
RECIPES = [
    ("grounding", "masked_volume", "outcomes"),
    ("multitask", "regions", "zero_shot"),
    ("prompt_segmentation", "report_forms", "retrieval"),
]
# The words that numbers of no value write are no JSON.
KNOWN = {("report_forms", "predict structured"): "not JSON"}


def pretend(*what: str) -> dict[str, dict[str, str | None]]:
    script = [sys.executable, str(FOLDER / "pretend_gpu.py"), *what]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("names", RECIPES, ids="-".join)
def test_recipes_train_and_predict_on_one_device(names: tuple[str, ...]) -> None:
    found = pretend(*(f"cpu/{name}.yaml" for name in names))
    for name in names:
        works = found[f"cpu/{name}.yaml"]
        assert "at least two devices, pretend:0 and cpu" in (works.pop("a stray tensor") or "")  # it would be seen
        assert len(works) > 1
        for work, said in works.items():
            assert said is None or KNOWN.get((name, work), "no error") in said, (name, work, said)


def test_encoders_run_on_one_device() -> None:
    found = pretend("encoders")["encoders"]
    assert len(found) > 20
    assert {name: said for name, said in found.items() if said} == {}
