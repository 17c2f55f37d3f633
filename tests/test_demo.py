"""`vol3d demo`, the whole path with few studies and few steps: everything it promises is there afterwards."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from vol3d.cli import main
from vol3d.demo import FINDINGS, demo
from vol3d.text.ontology import FINDINGS as TYPES

STAGES = yaml.safe_load((files("vol3d.recipes") / "quickstart.yaml").read_text())["model"]["stages"]
SMALL = [
    *("--trainer.max_steps=6", "--trainer.log_every_n_steps=1", "--model.encoder.init_args.depth=1"),
    "--model.tasks.report.init_args.max_new_tokens=8",
    *[f"--model.stages.{name}.steps=2" for name, stage in STAGES.items() if "steps" in stage],
]


def test_the_demo_has_at_least_ten_findings_four_of_them_on_both_sides() -> None:
    assert len(FINDINGS) >= 10
    assert sum(TYPES[name].sided for name in FINDINGS) >= 4


@pytest.mark.slow
def test_the_demo_leaves_what_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = demo("runs/demo", train=16, validation=4, test=8, twins=2, overrides=SMALL)
    run = tmp_path / "runs/demo"
    for name in ("data/manifest.jsonl", "metrics.csv", "recipe.yaml", "checkpoints/last.ckpt", "model/card.md"):
        assert (run / name).is_file(), name
    for name in ("evaluation.json", "predictions.jsonl", "evaluation.html"):
        assert (run / "evaluation" / name).is_file(), name
    result = json.loads((run / "evaluation/evaluation.json").read_text())
    assert result == done.data["evaluation"]
    assert result["studies"] == 8
    assert result["faithfulness"]["twins"]["pairs"] == 2
    page = (run / "evaluation/evaluation.html").read_text()
    assert "data:image/png;base64," in page
    assert "http://" not in page.replace("http://www.w3.org", ""), "the page needs no network"
    for word in ("finding_f1", "blind", "always normal", "twin pairs", "minutes", "GB at most"):
        assert word in done.text
    # What it tells the reader to try works as it stands.
    (line,) = [line for line in done.text.splitlines() if line.startswith("try:")]
    capsys.readouterr()
    assert main(line.removeprefix("try:").split()[1:]) == 0
