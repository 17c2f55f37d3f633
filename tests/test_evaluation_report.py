"""The report block in one call: findings, wording, baselines, collapse."""

import json
import time

import pytest

from vol3d.evaluation.metrics.report import score_reports

EFFUSION = "FINDINGS:\nThere is a large left pleural effusion.\n\nIMPRESSION:\nLeft pleural effusion."
ASCITES = "FINDINGS:\nThere is moderate ascites.\n\nIMPRESSION:\nAscites."
NORMAL = "FINDINGS:\nNo pleural effusion. No ascites.\n\nIMPRESSION:\nNormal examination."
TRUTHS = [EFFUSION, ASCITES, NORMAL, EFFUSION, ASCITES, NORMAL]
PATIENTS = list("abcdef")


def test_a_perfect_model_beats_its_baselines():
    got = score_reports(TRUTHS, TRUTHS, PATIENTS, training=[NORMAL, EFFUSION, NORMAL], replicates=50)
    assert got["finding_f1"]["value"] == got["bleu_4"]["value"] == 1
    assert set(got["per_finding"]) == {"left pleural effusion", "ascites"}
    assert got["baselines"]["always_normal"]["finding_f1"] == 0
    assert got["baselines"]["always_normal"]["text"] == NORMAL
    assert got["baselines"]["blind"]["finding_f1"] < 0.6
    assert got["baselines"]["text_prior"]["bleu_1"] < 1
    assert not got["collapse"]["collapsed"]
    json.dumps(got, allow_nan=False)


def test_a_model_that_ignores_the_image_scores_what_blind_scores():
    got = score_reports(TRUTHS, [EFFUSION] * 6, PATIENTS, replicates=50)
    assert got["finding_f1"]["value"] == pytest.approx(got["baselines"]["blind"]["finding_f1"])
    assert got["collapse"]["collapsed"]


def test_empty_outputs_and_one_patient_are_defined():
    got = score_reports(TRUTHS, [""] * 6, PATIENTS, replicates=20)
    assert got["finding_f1"]["value"] == got["bleu_1"]["value"] == 0
    assert got["collapse"]["empty"] == 6
    one = score_reports([EFFUSION, ASCITES], [EFFUSION, ASCITES], ["a", "a"], replicates=20)
    assert one["finding_f1"]["low"] is None
    assert "2 of 2 studies" in one["baselines"]["blind"]["note"]
    json.dumps(one, allow_nan=False)


@pytest.mark.slow
def test_ten_thousand_reports_in_under_two_minutes():
    filler = " The remaining organs are unremarkable on this examination and there is no acute abnormality."
    truths = [f"{text} Study {i}.{filler * 6}" for i, text in enumerate(TRUTHS * 1667)]
    start = time.process_time()
    got = score_reports(truths, truths[3:] + truths[:3], [i // 2 for i in range(len(truths))])
    assert time.process_time() - start < 120
    assert got["finding_f1"]["value"] == 1
