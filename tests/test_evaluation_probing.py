"""The faithfulness suite: models that look pass every probe, and whatever does not look is caught by every one."""

from dataclasses import replace

import numpy as np
import pytest
from toy_models import LEFT, NORMAL, RIGHT, Answers, Codes, Nothing, Says, believes, named, sampler, toy, words

from vol3d.data.manifest import Manifest
from vol3d.evaluation.controls import against_control, verdict
from vol3d.evaluation.probe_pairs import look_alikes
from vol3d.evaluation.probing import PROBES
from vol3d.evaluation.run import evaluate
from vol3d.evaluation.summary import summary

STUDIES = 60
TEXT_PROBES = {*PROBES, "image_dependence"} - {"contrast_phase"}  # the small world has no organ masks
BLIND = {
    "always the same": words([LEFT]),
    "both sides always": words([LEFT, RIGHT]),
    "always normal": NORMAL,
    "silent": "",
    "text prior, sampled": sampler(),
    "text prior, by name": named,
    "believes the prompt": believes,
}


class Findings(Says):
    """Writes the findings, and no whole report."""

    kind = target = "findings"


class Copies(Says):
    """Says of every volume what the earlier exam's report said."""

    prior = True


class Other(Nothing):
    """Predicts what no two predictions are compared by."""

    kind = "other"

    def predict(self, model, features, batch):
        return [{"other": 1.0} for _ in batch.studies]

    def score(self, evidence):
        return {"other": {"mean": {"value": 1.0, "low": 1.0, "high": 1.0}}}


class Invents(Says):
    """Looks, and names a finding of air that no patient has."""

    def write(self, model, features, prompts):
        air = [bool((image <= -1000).all()) for image in features.image]
        told = zip(air, super().write(model, features, prompts), strict=True)
        return [words(["splenomegaly"]) if empty else text for empty, text in told]


def probed(folder, *tasks, **options):
    model, manifest = toy(*tasks, count=STUDIES)
    result = evaluate(model, manifest, out=folder, probes=True, replicates=200, batch_size=30, **options)
    return result["faithfulness"], result


def test_models_that_look_pass_every_probe(tmp_path):
    found, result = probed(tmp_path, Says(), Answers(), Codes())
    assert {kind: block["caught"] for kind, block in found.items()} == {"report": [], "vqa": [], "codes": []}
    report = found["report"]
    assert report["not_judged"].keys() == {"contrast_phase"}
    assert report["mirror"]["value"] == report["blank"]["value"] == report["image_dependence"]["value"] == 1
    assert report["mirror"]["over_control"]["value"] == 1
    assert report["blank_claims"]["value"] == 0
    assert report["claim"] == report["claim"] | {"value": 1, "control": 0}
    assert found["vqa"]["erase"]["value"] == 1
    assert found["codes"]["shuffled"]["over_control"]["low"] > 0
    assert "probes, report: looks at the image" in summary(result)
    page = (tmp_path / "evaluation.html").read_text()
    assert "above the control in all" in page
    assert "Not judged: other contrast phase" in page


def test_what_was_asked_of_labels_that_are_mended_is_asked_anew(tmp_path):
    def score(folder, manifest):
        found = evaluate(model, manifest, out=folder, probes=["claim", "erase"], replicates=20, batch_size=24)
        return {name: found["faithfulness"]["report"][name] for name in ("claim", "erase")}

    model, manifest = toy(Says(believes), count=24)
    score(tmp_path / "kept", manifest)
    other = {study.study: study.report for study in manifest}
    swapped = [replace(study, report=other[f"s{(n + 1) % 24}"]) for n, study in enumerate(manifest)]
    assert score(tmp_path / "kept", Manifest(swapped)) == score(tmp_path / "new", Manifest(swapped))
    shown = model.shown
    score(tmp_path / "kept", Manifest(swapped))
    assert model.shown - shown < 60, "what has not changed is not shown again"


@pytest.mark.parametrize("says", BLIND.values(), ids=BLIND)
def test_whatever_does_not_look_is_caught_by_every_probe(tmp_path, says):
    found, result = probed(tmp_path, Says(says))
    assert set(found["report"]["caught"]) == TEXT_PROBES
    assert "no sign of looking in blank" in summary(result)


@pytest.mark.parametrize(("says", "caught"), [(None, set()), (words([LEFT]), TEXT_PROBES)], ids=["looks", "blind"])
def test_a_part_of_a_report_is_probed_like_a_whole_one(tmp_path, says, caught):
    found, result = probed(tmp_path, Findings(says))
    assert found.keys() == {"findings"}
    assert set(found["findings"]["caught"]) == caught
    assert found["findings"]["not_judged"].keys() == {"contrast_phase"}
    assert found["findings"]["claim"]["value"] is not None
    assert result["tasks"].keys() == {"findings"}
    page = (tmp_path / "evaluation.html").read_text()
    assert page.count("GENERATED FINDINGS") == 8


def test_a_copied_earlier_report_is_no_sign_of_looking(tmp_path):
    """The earlier report goes into the prompt: it stays the patient's own when another's volume is shown."""
    copies = Copies(lambda study, prompt: study.meta["prior_report"])
    model, manifest = toy(copies, count=STUDIES)
    told = [study.report if number % 2 else words([LEFT]) for number, study in enumerate(manifest)]
    rows = [replace(study, meta={"prior_report": text}) for study, text in zip(manifest, told, strict=True)]
    result = evaluate(model, Manifest(rows), out=tmp_path, probes=["shuffled"], replicates=50)
    block = result["tasks"]["report"]
    assert 0 < block["finding_f1"]["value"] == block["baselines"]["blind"]["finding_f1"] < 1
    assert set(result["faithfulness"]["report"]["caught"]) == {"shuffled", "image_dependence"}


def test_what_cannot_be_judged_says_why(tmp_path):
    found, result = probed(tmp_path, Other())
    assert found["other"]["judged"] == found["other"]["caught"] == []
    assert found["other"]["not_judged"] == {"image_dependence": "no score that two predictions could be compared by"}
    assert "probes, other: not judged: no score that two" in summary(result)
    assert "no score that two predictions" in (tmp_path / "evaluation.html").read_text()


def test_findings_invented_of_air_are_told_apart_from_not_looking(tmp_path):
    """One that names another finding of air than of any patient looks, and invents."""
    found, _ = probed(tmp_path, Invents())
    assert "blank" not in found["report"]["caught"]
    assert (found["report"]["blank"]["value"], found["report"]["blank_claims"]["value"]) == (1, 1)


def test_answers_and_codes_that_do_not_look_are_caught(tmp_path):
    found, _ = probed(tmp_path, Answers(looks=False), Codes(looks=False))
    for kind in ("vqa", "codes"):
        judged = TEXT_PROBES - {"claim", "confusable"} - found[kind]["not_judged"].keys()
        assert set(found[kind]["caught"]) == judged
        assert {"blank", "shuffled", "noise", "image_dependence"} <= judged


def test_one_that_says_something_else_each_time_reacts_as_much_to_nothing():
    """Why no fixed bound will do: "erased and gone" is 0.6 for a model that draws, and so is its control."""
    hits, control = [1, 1, 0, 1, 0] * 12, [1, 0, 1, 1, 0] * 12
    got = against_control(hits, control, [1] * 60, range(60))
    assert got["low"] > 0.4
    assert got["control"] == got["value"] == 0.6
    assert verdict(got) == "caught"


def test_look_alike_pairs_are_of_different_patients():
    """A pair counted from both ends would be two patients who always agree, and let a blind model escape too often."""
    angles = np.radians([0, 2, 5, 60, 61, 65])
    looks = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    truths = [{LEFT}, {LEFT}, {RIGHT}, {LEFT}, {RIGHT}, set()]
    assert look_alikes(looks, truths, "abcdef") == [(3, 4), (1, 2), (0, 5)]
    assert look_alikes(looks, truths, "abbaef") == [(3, 4), (2, 5)], "no patient with itself, none twice"


def test_seven_pairs_of_look_alikes_prove_nothing(tmp_path):
    model, manifest = toy(Says(), count=14)
    score = evaluate(model, manifest, out=tmp_path, probes=["confusable"], replicates=20)["faithfulness"]["report"]
    assert score["confusable"]["value"] == 1
    assert "too few patients" in score["not_judged"]["confusable"]


def test_few_patients_prove_nothing():
    """Neither that a model looks nor that it does not: whatever they say, p could not fall below 0.01."""
    looks = [against_control([1] * n, [0] * n, [1] * n, range(n)) for n in (3, 7, 8)]
    assert [verdict(score) for score in looks] == ["not judged", "not judged", "looks"]
    assert looks[0]["over_control"]["p"] == 0.25
    assert looks[0]["note"] == "not applicable: too few patients to tell (3, 8 could)"
    blind = [against_control([1] * n, [1] * n, [1] * n, range(n)) for n in (7, 8)]
    assert [verdict(score) for score in blind] == ["not judged", "caught"]
    assert verdict(against_control([1] * 9, [0] * 9, [1] * 3 + [0] * 6, range(9))) == "not judged", "nothing was shown"
    assert verdict(against_control([1, 1], [0, 0], [1, 1], ["a", "a"])) == "not judged"
