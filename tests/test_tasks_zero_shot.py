"""Zero-shot findings: asked in words, calibrated on validation and never on test, prompt banks that read as meant."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from world import FINDINGS, World, dealt, study, trainer

import vol3d
from vol3d.data.batch import Sample, collate
from vol3d.data.study import Study
from vol3d.evaluation.metrics.calibration import platt
from vol3d.model.interfaces import Evidence
from vol3d.model.volume_lm import VolumeLM
from vol3d.tasks import ZeroShot
from vol3d.tasks.zero_shot import score_findings
from vol3d.text.ontology import FINDINGS as KINDS
from vol3d.text.ontology import KEYS
from vol3d.text.parser import finding_labels, parse_findings
from vol3d.text.prompts import prompt_bank
from vol3d.training.module import VolumeModule
from vol3d.training.stages import Stage

SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2}
# The toy world's reports know no "no": absence is asked for in the words they have.
PROMPTS = {
    name: {"positive": [f"There is a {name}.", f"There is a {name}"], "negative": ["The chest is normal."]}
    for name in FINDINGS
}


def labelled(number: int, split: str = "train") -> Sample:
    sample = study(number, split)
    known = {name: int(name in sample.study.report) for name in FINDINGS}
    return replace(sample, study=replace(sample.study, labels_known=known))


@cache
def trained(deal: int | None = None) -> VolumeModule:
    train = [labelled(number) for number in range(96)]
    train = train if deal is None else dealt(train, deal)
    torch.manual_seed(0)
    encoder = vol3d.encoders.create("vit3d-tiny", embed_dim=32, depth=1, num_heads=2, patch_size=(4, 4, 2))
    settings = {"text_encoder": SMALL, "embed_dim": 32, "queries": 4, "equal": "findings"}
    task = partial(ZeroShot, findings=FINDINGS, prompts=PROMPTS, **settings)
    module = VolumeModule(encoder, {"zero_shot": task}, stages={"all": Stage(learning_rate=3e-3)})
    trainer(60, Path()).fit(module, World(train, batch_size=16))
    return module.eval()


def evidence(module: VolumeModule) -> Evidence:
    samples = [labelled(1000 + number, "val" if number < 24 else "test") for number in range(72)]
    batch = collate(samples)
    batch.image = batch.image.float() / 300
    with torch.inference_mode():
        features = module.model.encode(batch.image, batch.affine)
        rows = module.tasks["zero_shot"].predict(module.model, features, batch)
    studies = [sample.study for sample in samples]
    predictions = {study.study: row for study, row in zip(studies, rows, strict=True)}
    return Evidence(studies[24:], predictions, validation=studies[:24], replicates=50)


@pytest.mark.learn
def test_findings_are_told_from_words_alone() -> None:
    module = trained()
    scores = module.tasks["zero_shot"].score(evidence(module))
    assert scores["zero_shot"]["macro_auroc"]["value"] > 0.95
    assert scores["zero_shot"]["macro_f1"]["value"] > 0.8
    assert scores["zero_shot"]["calibrated_on"] == 24
    assert scores["zero_shot"]["baselines"]["blind"]["macro_auroc"] < 0.7
    assert scores["retrieval"]["recall@1"]["value"] > 0.8


@pytest.mark.slow
@pytest.mark.learn
def test_shuffled_volumes_teach_nothing() -> None:
    runs = [trained(deal) for deal in range(3)]
    scores = [run.tasks["zero_shot"].score(evidence(run))["zero_shot"] for run in runs]
    assert np.mean([score["macro_auroc"]["value"] for score in scores]) < 0.65


# --- calibration --------------------------------------------------------------------------------------------


def made(count: int, seed: int, *, flip: bool = False) -> tuple[list[Study], dict[str, dict[str, float]]]:
    """Studies whose logit is 3 · (truth − 0.2) and noise."""
    rng = np.random.default_rng(seed)
    studies, logits = [], {}
    for number in range(count):
        true = int(rng.random() < 0.3)
        name = f"{seed}-{number}"
        studies.append(Study(name, Path("none.nii.gz"), labels_known={"ascites": 1 - true if flip else true}))
        logits[name] = {"ascites": 3 * (true - 0.2) + rng.normal()}
    return studies, logits


def test_the_test_split_never_calibrates() -> None:
    test, first = made(60, 1)
    validation, second = made(60, 2)
    logits = first | second
    scores = score_findings(["ascites"], test, validation, logits, replicates=20)
    # Other labels for the tested studies change the scores, and not one probability: what is fitted is the same.
    flipped = [replace(study, labels_known={"ascites": 1 - study.labels_known["ascites"]}) for study in test]
    other = score_findings(["ascites"], flipped, validation, logits, replicates=20)
    assert other["macro_auroc"]["value"] == pytest.approx(1 - scores["macro_auroc"]["value"])
    said = lambda found: [row["probability"] for row in found["reliability"]]  # noqa: E731
    assert said(other) == said(scores)
    # Other labels for the validation studies do change them.
    wrong, _ = made(60, 2, flip=True)
    assert said(score_findings(["ascites"], test, wrong, logits, replicates=20)) != said(scores)


def test_calibration_brings_probabilities_to_frequencies() -> None:
    test, first = made(400, 1)
    validation, second = made(400, 2)
    logits = {name: {"ascites": 10 * row["ascites"] - 20} for name, row in (first | second).items()}
    scores = score_findings(["ascites"], test, validation, logits, replicates=20)
    assert scores["ece"]["value"] < 0.08
    without = score_findings(["ascites"], test, [], logits, replicates=20)
    assert without["calibrated_on"] == 0
    assert "ece" not in without
    assert "macro_f1" not in without
    assert without["macro_auroc"]["value"] == pytest.approx(scores["macro_auroc"]["value"])


def test_auroc_is_scikit_learns_and_unknown_labels_count_for_nothing() -> None:
    test, logits = made(50, 3)
    unknown = [replace(study, study=f"u{study.study}", labels_known={"ascites": None}) for study in test]
    logits |= {f"u{name}": {"ascites": 99.0} for name in list(logits)}
    scores = score_findings(["ascites"], test + unknown, [], logits, replicates=20)
    truth = [study.labels_known["ascites"] for study in test]
    assert scores["macro_auroc"]["value"] == pytest.approx(
        roc_auc_score(truth, [logits[study.study]["ascites"] for study in test])
    )
    assert score_findings(["ascites"], unknown, [], logits) == {}


def test_platt_is_logistic_regression_with_smoothed_targets() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(size=300)
    true = (rng.random(300) < 1 / (1 + np.exp(-(2 * score - 1)))).astype(float)
    slope, offset = platt(score[:, None], true[:, None])
    # Platt's targets as weights: each study is both labels, in the shares of its target.
    share = np.where(true == 1, (true.sum() + 1) / (true.sum() + 2), 1 / ((1 - true).sum() + 2))
    peer = LogisticRegression(C=1e8, tol=1e-8).fit(
        np.r_[score, score][:, None], np.r_[np.ones(300), np.zeros(300)], sample_weight=np.r_[share, 1 - share]
    )
    assert [slope[0], offset[0]] == pytest.approx([peer.coef_[0, 0], peer.intercept_[0]], abs=1e-2)


@given(some.lists(some.tuples(some.floats(-50, 50), some.sampled_from([0.0, 1.0, np.nan])), min_size=1, max_size=30))
def test_calibration_never_turns_an_order_round(rows: list[tuple[float, float]]) -> None:
    logits, truths = np.array([[score] for score, _ in rows]), np.array([[true] for _, true in rows])
    slope, offset = platt(logits, truths)
    assert slope[0] > 0
    assert np.isfinite(offset).all()


# --- prompts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", dict.fromkeys([*KEYS, *KINDS]))
def test_a_prompt_is_read_as_it_is_meant(key: str) -> None:
    bank = prompt_bank(key)
    assert len(bank.positive) >= 4 <= len(bank.negative)
    for sentence in (*bank.positive, *bank.synonyms, *bank.attributes):
        if "groin" in sentence:
            continue  # the parser does not tell the side of a groin
        names = {finding.key for finding in parse_findings(sentence)}
        sided = {finding.name for finding in parse_findings(sentence)} == {key}  # the lingula is on the left
        assert names == {key} or sided, sentence
    for sentence in bank.negative:
        assert not parse_findings(sentence), sentence
        labels = finding_labels(sentence)
        assert all(labels.get(one, 1) == 0 for one in (KINDS[key].keys if key in KINDS else [key])), sentence


def test_words_of_ones_own() -> None:
    bank = prompt_bank("Left  adrenal adenoma")
    assert bank.positive[0] == "There is a left adrenal adenoma."
    assert bank.negative[0] == "No left adrenal adenoma."
    with pytest.raises(ValueError, match="has no words"):
        prompt_bank(" ")


def test_prompts_and_findings_that_cannot_be_asked() -> None:
    model = VolumeLM(vol3d.encoders.create("vit3d-tiny", embed_dim=32, depth=1, num_heads=2))
    build = partial(ZeroShot, model, text_encoder=SMALL, embed_dim=16, queries=2)
    with pytest.raises(ValueError, match=r"'ascites' have 1 positive and 0 negative sentences"):
        build(findings=["ascites"], prompts={"ascites": {"positive": ["Ascites."]}})
    with pytest.raises(ValueError, match=r"named once each and at least one, got \['ascites', 'ascites'\]"):
        build(findings=["ascites", "ascites"])


def test_directions_follow_the_weights() -> None:
    model = VolumeLM(vol3d.encoders.create("vit3d-tiny", embed_dim=32, depth=1, num_heads=2))
    task = ZeroShot(model, findings=["ascites"], text_encoder=SMALL, embed_dim=16, queries=2).eval()
    with torch.no_grad():
        before = task.directions(model)
        assert task.directions(model) is before, "asked once for fixed weights"
        task.text_head.weight.mul_(-1.0)
        assert (task.directions(model) - before).abs().max() > 1e-3
        before = task.directions(model)
        task.train()
        task.text_head.weight.data.mul_(-1.0)  # as an optimizer may: this raises no version
        assert (task.eval().directions(model) - before).abs().max() > 1e-3
