"""The head-to-head with the model one was fine-tuned from, found by what the model's folder says."""

from dataclasses import replace

import pytest
import yaml
from toy_models import LEFT, Answers, Says, toy, words

from vol3d.data.manifest import Manifest
from vol3d.evaluation.run import evaluate


def saved(model, folder, base=None):
    """The folder of a toy: only what tells which model it is."""
    folder.mkdir(parents=True)
    settings = {"tasks": {}, "name": folder.parent.name} | ({} if base is None else {"base": base})
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "model.safetensors").write_bytes(folder.parent.name.encode())
    model.folder = folder
    return model


@pytest.fixture
def runs(tmp_path):
    """A model that looks, fine-tuned from one that does not."""
    good, manifest = toy(Says(), Answers())
    poor, _ = toy(Says(words([LEFT])), Answers(looks=False))
    saved(poor, tmp_path / "base" / "model")
    saved(good, tmp_path / "tuned" / "model", base="../../base/model")
    return tmp_path, good, poor, manifest


def test_the_page_opens_with_the_base_it_was_fine_tuned_from(runs):
    folder, good, poor, manifest = runs
    alone = evaluate(poor, manifest, out=folder / "base" / "evaluation", replicates=20)
    assert "No base model is known: name a base model's evaluation with --base DIR" in alone["base"]["note"]
    assert alone["base"]["note"] in (folder / "base" / "evaluation" / "evaluation.html").read_text().replace(
        "&#39;", "'"
    )
    out = folder / "tuned" / "evaluation"
    got = evaluate(good, manifest, out=out, replicates=200)
    assert got["base"]["tasks"]["report"]["finding_f1"]["value"] > 0
    page = (out / "evaluation.html").read_text()
    assert page.index("Against the base model") < page.index("How far to trust this page")
    assert (out / "comparison.html").is_file()


def test_why_there_is_none(runs):
    folder, good, poor, manifest = runs
    out, there = folder / "tuned" / "evaluation", folder / "base" / "evaluation"

    def note():
        return evaluate(good, manifest, out=out, replicates=20)["base"]["note"]

    assert "which has no evaluation in" in note()
    evaluate(poor, manifest[:4], out=there, replicates=20)
    (folder / "base" / "model" / "config.yaml").write_text("tasks: {}")
    assert "is an evaluation of other weights" in note()
    evaluate(poor, manifest[:4], out=there, replicates=20, overwrite=True)
    assert evaluate(good, manifest, out=out, replicates=20)["base"]["studies"] == 4
    (there / "predictions.jsonl").write_text('{"study": "another"}\n')
    assert "0 of them are in both" in note()
    with pytest.raises(ValueError, match="0 of them are in both"):
        evaluate(good, manifest, out=out, replicates=20, base=there)


def test_a_base_that_cannot_be_told_apart_by_a_p_value_has_its_page_too(runs):
    """Of one patient there is no interval and no p."""
    folder, good, poor, manifest = runs
    one = Manifest([replace(study, patient="p") for study in manifest[:4]])
    evaluate(poor, one, out=folder / "base" / "evaluation", replicates=20)
    out = folder / "tuned" / "evaluation"
    evaluate(good, one, out=out, replicates=20)
    for name in ("evaluation", "comparison"):
        page = (out / f"{name}.html").read_text()
        assert "No score of both has a p-value" in page
        assert "one patient: no interval" in page
