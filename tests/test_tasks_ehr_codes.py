"""Codes: unknown is not negative, ICD becomes phecodes, parents are as likely as their children, losses by hand."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled_world import batch, evidence, learn, model, row
from torch import nn

import vol3d
from vol3d.model.interfaces import Features
from vol3d.model.pretrained import build, save
from vol3d.tasks import EHRCodes

LM = model()
TOKENS = Features(torch.randn(2, 6, 48, generator=torch.Generator().manual_seed(0)), (3, 2, 1))


class Said(nn.Module):
    """A head that always says the same logits."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, features: Features) -> torch.Tensor:
        return self.logits


def task_saying(logits: list[list[float]], codes: list[str], **settings: object) -> EHRCodes:
    task = EHRCodes(model(), codes=codes, **settings)
    task.head = Said(logits)
    return task


def studies(*rows: vol3d.data.study.Study) -> vol3d.data.batch.Batch:
    made = batch(range(len(rows)))
    made.studies = list(rows)
    return made


def test_only_recorded_and_absent_codes_cost_anything():
    """p = 0.8 for a true code and 0.2 for a false one, whatever is said of the unknown ones."""
    logit = math.log(4)
    task = task_saying([[logit, -logit, 7.0], [5.0, 5.0, 5.0]], ["507", "572", "416"])
    known = studies(row("a", codes=["J90"], codes_absent=["R18.8"], code_system="icd10cm"), row("b"))
    output = task.loss(LM, TOKENS, known)
    assert output.count == 1
    assert output.loss.item() == pytest.approx(-math.log(0.8))
    output.loss.backward()
    assert torch.equal(task.head.logits.grad != 0, torch.tensor([[True, True, False], [False] * 3]))
    nothing = task.loss(LM, TOKENS, studies(row("a"), row("b")))
    assert (nothing.loss, nothing.count) == (None, 0)


def test_asymmetric_loss_by_hand():
    """Negatives: p = 0.5 less the margin is 0.45, and 0.45⁴ · −log 0.55; a negative under the margin costs nothing."""
    task = task_saying([[0.0, 0.0, -4.0]], ["507", "572", "416"], loss="asymmetric")
    made = studies(row(codes=["507"], codes_absent=["572", "416"], code_system="phecode"))
    wanted = (math.log(2) - 0.45**4 * math.log(0.55) + 0.0) / 3
    assert task.loss(LM, TOKENS, made).loss.item() == pytest.approx(wanted, rel=1e-5)


def test_prevalence_lifts_the_positives_and_leaves_the_probabilities():
    task = task_saying([[0.0, 0.0]], ["507", "572"], weighting="prevalence", max_weight=4.0)
    task.seen.copy_(torch.tensor([[29.0, 1000.0], [9.0, 0.0]]))
    assert task.positive_weight().tolist() == [3.0, 4.0]
    made = studies(row(codes=["507", "572"], code_system="phecode"))
    task.eval()
    assert task.loss(LM, TOKENS, made).loss.item() == pytest.approx(3.5 * math.log(2))
    assert task.seen.sum() == 1038, "only training counts"
    # Odds of 1 were learnt with positives weighing 3: the odds are 1 / 3.
    assert task.probabilities(TOKENS)[0].tolist() == pytest.approx([0.25, 0.2])
    task.train()
    task.loss(LM, TOKENS, made)
    assert task.seen.tolist() == [[29.0, 1000.0], [10.0, 1.0]]
    task.seen.fill_(257)
    assert task.bfloat16().seen.tolist() == [[257, 257]] * 2, "DeepSpeed casts a module so, and 257 is 256 there"


@pytest.mark.parametrize(
    ("hierarchy", "wanted"),
    [
        ("none", [0.1, 0.3, 0.5, 0.2, 0.4]),
        ("max", [0.5, 0.5, 0.5, 0.2, 0.4]),
        ("noisy-or", [0.748, 0.65, 0.5, 0.2, 0.4]),
    ],
)
def test_a_code_is_as_likely_as_those_below_it(hierarchy, wanted):
    """E11 has E11.6 (which has E11.65) and E11.9 below it; J90 has none."""
    logits = torch.logit(torch.tensor([[0.1, 0.3, 0.5, 0.2, 0.4]])).tolist()
    codes = ["E11", "E11.6", "E11.65", "E11.9", "J90"]
    task = task_saying(logits, codes, system="icd10cm", hierarchy=hierarchy)
    assert task.probabilities(TOKENS)[0].tolist() == pytest.approx(wanted)


def test_a_named_vocabulary_is_kept_in_the_saved_model(tmp_path: Path):
    listed = tmp_path / "codes.csv"
    listed.write_text("phecode,name\n507,effusion\n8.5,enteritis\n")
    lm = model()
    task = EHRCodes(lm, codes=str(listed))
    save(
        tmp_path / "model",
        lm,
        {"codes": task},
        vol3d.Grid(spacing=(4, 4, 8), shape=(16, 16, 8), window=[(-1000, 1000)]),
    )
    listed.unlink()
    assert build(tmp_path / "model")[1]["codes"].codes == ["507", "008.5"]
    assert len(EHRCodes(lm, codes="merlin").codes) == 1692


def test_labels_that_cannot_be_used_are_named():
    lm = model()
    with pytest.raises(ValueError, match="'J90' is not a code of phecode"):
        EHRCodes(lm, codes=["J90"])
    with pytest.raises(ValueError, match=r"once each and at least one, got \['507', '507'\]"):
        EHRCodes(lm, codes=["507", "507"])
    task = EHRCodes(lm, code_map="findings")
    for labels, message in (
        ({"codes": ["pneumonia"], "code_system": "icd10cm"}, "study 'a': 'pneumonia' is not a code of icd10cm"),
        ({"codes": ["I10"], "code_system": "icd10cm"}, "study 'a': I10 has no phecode in the map 'findings'"),
        ({"codes": ["511.9"], "code_system": "icd9cm"}, "study 'a': codes are icd9cm, the task's are phecode"),
        ({"codes": ["550.1"], "codes_absent": ["550"], "code_system": "phecode"}, "550.1 is recorded and brings 550"),
    ):
        with pytest.raises(ValueError, match=message):
            task.loss(lm, TOKENS, studies(row("a", **labels)))
    pooled = EHRCodes(model(), pooling="pooled")
    with pytest.raises(ValueError, match='pooling is "pooled", but the encoder gives tokens only'):
        pooled.head(TOKENS)


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_every_parameter_learns(pooling):
    task = EHRCodes(model(), codes=["507", "572"], pooling=pooling)
    task.loss(LM, TOKENS, batch(range(2))).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in task.parameters())


def test_attention_is_the_weighted_mean_of_what_tokens_say():
    task = EHRCodes(model(), codes=["507", "572"])
    head, tokens = task.head, task.head.norm(TOKENS.tokens)
    share = (tokens @ head.query.weight.T).softmax(dim=1)
    pooled = torch.einsum("btc,btd->bcd", share, tokens)
    torch.testing.assert_close(head(TOKENS), (pooled * head.head.weight).sum(-1) + head.head.bias)


BUILD = partial(EHRCodes, codes=["507", "572"], hierarchy="none")


@pytest.mark.learn
def test_it_learns_which_side_and_must_see_the_volume_for_it():
    lm, task = learn(BUILD, steps=40)
    scores = task.score(evidence(lm, task, range(1000, 1120), range(2000, 2060)))["codes"]
    assert scores["macro_auroc"]["value"] > 0.95
    assert scores["macro_f1"]["value"] > 0.8
    assert scores["brier"]["value"] < 0.1
    assert abs(scores["baselines"]["blind"]["macro_auroc"] - 0.5) < 0.15
    # Not the AUROC: where there is one thing to see, any chance correlation with it ranks all studies one way.
    lm, task = learn(BUILD, steps=40, shuffled=True)
    assert task.score(evidence(lm, task, range(1000, 1120)))["codes"]["brier"]["value"] > 0.22


def test_scores_need_known_labels_and_enough_of_them():
    lm = model()
    task = BUILD(lm, min_positives=50)
    shown = evidence(lm, task, range(60))
    assert task.score(shown)["codes"]["macro_auroc"]["value"] is None
    assert "fewer than 50" in task.score(shown)["codes"]["skipped"]["507"]
    assert "macro_f1" not in task.score(shown)["codes"], "no threshold without validation studies"
    shown = vol3d.model.interfaces.Evidence([row("a")], {"a": {}})
    assert task.score(shown) == {}
    assert np.isnan(task.truth(row("a"))).all()
