"""Reports: which section a step learns, what stands in a prompt, what is joined, and JSON learnt from the volume."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import world

import vol3d
from vol3d.data.batch import Batch, collate
from vol3d.data.manifest import Manifest
from vol3d.data.priors import with_prior_reports
from vol3d.data.study import TEXTS, Study
from vol3d.evaluation.metrics.structured import score_structured
from vol3d.model.inference import TrainedModel
from vol3d.model.interfaces import Evidence
from vol3d.tasks import FindingMaps, FindingsThenImpression, OrganReports, ReportGeneration, StructuredReport
from vol3d.text.prompts_report import MERLIN, STRUCTURED, join_organs
from vol3d.text.structured import from_json, structured, to_json

REPORT = (
    "FINDINGS:\nLungs and pleura: Small left pleural effusion.\nKidneys: A 12 mm stone in the right kidney.\n"
    "Bowel: Possible small ascites.\nIMPRESSION:\nEffusion and stone."
)
SECTIONS = {
    "lower thorax": "Small left pleural effusion.",
    "kidneys": "A 12 mm stone in the right kidney.",
    "bowel": "Possible small ascites.",
}


def model(*texts: str) -> vol3d.VolumeLM:
    torch.manual_seed(0)
    return vol3d.VolumeLM(
        vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=1, num_heads=2, patch_size=(4, 4, 2)),
        partial(vol3d.PerceiverProjector, num_latents=4, num_heads=2),
        vol3d.LanguageModel.scratch([REPORT, *texts], embed_dim=48, depth=2, num_heads=2, vocab_size=400),
    )


def study(name: str = "a", **fields) -> Study:
    return Study(study=name, image=Path("none.nii.gz"), **fields)


def batch(*studies: Study) -> Batch:
    torch.manual_seed(1)
    affine = torch.eye(4, dtype=torch.float64).repeat(len(studies), 1, 1)
    return Batch(list(studies), torch.randn(len(studies), 1, 16, 16, 8), affine)


def spoken(lm: vol3d.VolumeLM, task: ReportGeneration, part: Batch) -> list[tuple[str, str]]:
    """Prompt and text of everything that a step learns."""
    heard: list[tuple[str, str]] = []

    def listen(features, prompts, texts):
        heard.extend(zip(prompts, texts, strict=True))
        return torch.zeros(())

    lm.language_loss = listen
    task.loss(lm, lm.encode(part.image, part.affine), part)
    del lm.language_loss
    return heard


# --- organ by organ ----------------------------------------------------------------------------------------


def test_each_step_learns_one_section_and_in_time_all() -> None:
    lm = model()
    task, part = OrganReports(lm), batch(study(report=REPORT))
    heard = [pair for _ in range(30) for pair in spoken(lm, task, part)]
    assert len(heard) == 30
    wanted = {("<volume>\nDescribe the " + organ + " on this CT.\n", text) for organ, text in SECTIONS.items()}
    assert set(heard) == wanted | {("<volume>\nWrite the impression of this CT.\n", "Effusion and stone.")}


def test_sections_drawn_come_back_with_the_weights_and_differ_between_studies() -> None:
    lm = model()
    task = OrganReports(lm)
    part = batch(*(study(f"s{number}", report=REPORT) for number in range(12)))
    first, second = spoken(lm, task, part), spoken(lm, task, part)
    assert first != second
    assert len(set(first)) > 1
    resumed = OrganReports(lm)
    resumed.load_state_dict(task.state_dict())
    assert spoken(lm, resumed, part) == spoken(lm, task, part)
    assert spoken(lm, task.eval(), part) == spoken(lm, resumed.eval(), part), "validation does not move"


def test_a_report_without_headers_costs_nothing() -> None:
    lm = model()
    task, part = OrganReports(lm, impression_prompt=None), batch(study(report="Small left pleural effusion."))
    output = task.loss(lm, lm.encode(part.image, part.affine), part)
    assert (output.loss, output.count) == (None, 0)


def test_all_organs_are_written_and_joined_with_headers() -> None:
    lm, asked = model().eval(), []

    def write(features, prompts, **options):
        asked.append(list(prompts))
        return [f"text {len(asked)}" for _ in prompts]

    lm.generate = write
    part = batch(study("a"), study("b"))
    (one, _) = OrganReports(lm, organs=["kidneys", "liver"], prompt=f"<volume>{MERLIN}").predict(
        lm, lm.encode(part.image, part.affine), part
    )
    assert one["report"] == "FINDINGS:\nLiver: text 2\nKidneys: text 1\nIMPRESSION:\ntext 3"
    assert asked[0] == ["<volume>Generate a radiology report for kidneys###"] * 2
    assert len(asked) == 3
    braces = OrganReports(lm, prompt='<volume>Describe {organ} as {"text": …}:')
    assert braces.section_prompt(part.studies[0], "liver") == '<volume>Describe liver as {"text": …}:'
    assert join_organs({"liver": "", "spleen": "Normal.\n"}) == "FINDINGS:\nSpleen: Normal."


def test_bad_organs_and_prompts_are_refused() -> None:
    lm = model()
    with pytest.raises(ValueError, match=r"organs \['brain'\] are not among Merlin's 13"):
        OrganReports(lm, organs=["brain"])
    with pytest.raises(ValueError, match=r"no \{organ\} in it: '<volume>Go'"):
        OrganReports(lm, prompt="<volume>Go")
    with pytest.raises(ValueError, match=r"no \{findings\} in it: '<volume>Go'"):
        FindingsThenImpression(lm, impression_prompt="<volume>Go")
    with pytest.raises(ValueError, match="OrganReports needs a model with a language model"):
        OrganReports(vol3d.VolumeLM(vol3d.encoders.create("vit3d-tiny", embed_dim=24, depth=1, num_heads=2)))


# --- findings, then impression -----------------------------------------------------------------------------


def test_the_impression_is_learnt_from_the_findings() -> None:
    lm = model()
    part = batch(study(findings="Left effusion.", impression="Effusion."), study("b", findings="Normal."), study("c"))
    task = FindingsThenImpression(lm)
    assert spoken(lm, task, part) == [
        ("<volume>\nDescribe the findings of this CT.\n", "Left effusion."),
        ("<volume>\nFindings:\nLeft effusion.\nWrite the impression.\n", "Effusion."),
        ("<volume>\nDescribe the findings of this CT.\n", "Normal."),
    ]
    assert task.loss(lm, lm.encode(part.image, part.affine), part).count == 2


def test_at_inference_the_impression_sees_the_generated_findings() -> None:
    lm, asked = model().eval(), []

    def write(features, prompts, **options):
        asked.append(prompts)
        return ["A <volume> cyst {x}."] if len(asked) == 1 else ["Cyst."]

    lm.generate = write
    part = batch(study(findings="The truth, which must not be seen."))
    (row,) = FindingsThenImpression(lm).predict(lm, lm.encode(part.image, part.affine), part)
    assert row["report"] == "FINDINGS:\nA <volume> cyst {x}.\nIMPRESSION:\nCyst."
    assert asked[1] == ["<volume>\nFindings:\nA  cyst {x}.\nWrite the impression.\n"]


# --- with an earlier exam ----------------------------------------------------------------------------------


def test_the_earlier_report_stands_in_the_prompt() -> None:
    lm = model()
    rows = [study("new", patient="p", prior="old", report="Larger."), study("old", patient="p", report="Small cyst.")]
    linked = with_prior_reports(Manifest(rows))
    assert linked["new"].meta == {"prior_report": "Small cyst."}
    assert linked["old"].meta == {}
    heard = spoken(lm, ReportGeneration(lm, prior=True), batch(*linked))
    assert heard[0][0] == "<volume>\nReport of the earlier exam:\nSmall cyst.\nWrite the report of this CT.\n"
    assert heard[1][0] == "<volume>\nThere is no earlier exam.\nWrite the report of this CT.\n"
    assert spoken(lm, ReportGeneration(lm), batch(*linked))[0][0] == "<volume>\nWrite the report of this CT.\n"


# --- JSON --------------------------------------------------------------------------------------------------


def test_a_task_is_called_by_what_it_writes() -> None:
    """Rows, scores, probes and the verb `report` find it by that name."""
    lm = model("The liver is enlarged.")
    for target in ("report", "findings", "impression"):
        task = ReportGeneration(lm, target=target, max_new_tokens=2)
        part = batch(study(findings="The liver is enlarged.", impression="Hepatomegaly."))
        rows = task.predict(lm, lm.encode(part.image), part)
        scored = task.score(Evidence(part.studies, {"a": rows[0]}, replicates=2))
        assert task.kind == target
        assert [*rows[0]] == [*scored] == [target]
        assert TrainedModel(lm, {"mine": task}, vol3d.Grid(shape=(16, 16, 8)))._task(*TEXTS) is task
    assert FindingsThenImpression(lm).kind == "report"
    assert StructuredReport(lm).kind == "structured"
    with pytest.raises(ValueError, match="not trained for 'report'; it predicts structured"):
        TrainedModel(lm, {"mine": StructuredReport(lm)}, vol3d.Grid(shape=(16, 16, 8))).report("none.nii.gz")


def test_writing_reads_as_many_visual_tokens_as_are_kept() -> None:
    """The option of a recipe, and of a saved model's config.yaml."""
    lm, part = model().eval(), batch(study("a"), study("b"))
    features, lengths = lm.encode(part.image), []
    lm.language.causal_lm.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    for keep in (1.0, 0.5, 1):
        task = ReportGeneration(lm, keep=keep, max_new_tokens=1)
        written = [row["report"] for row in task.predict(lm, features, part)]
        assert written == lm.generate(features, [task.prompt] * 2, keep=keep, max_new_tokens=1)
    assert [lengths[0] - length for length in lengths] == [0, 0, 2, 2, 3, 3]


def test_the_truth_is_parsed_from_the_report() -> None:
    rows = structured(REPORT)
    assert [tuple(row.values()) for row in rows] == [
        ("pleural effusion", "left", None, "present"),
        ("renal stone", "right", 12, "present"),
        ("ascites", None, None, "possible"),
    ]
    assert structured(REPORT, ["ascites"]) == rows[2:]
    assert from_json(to_json(rows)) == rows
    assert structured("No effusion. The liver is normal.") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"finding": "ascites"', "not JSON"),
        ('{"finding": "ascites"}', "a list of findings, got dict"),
        ('[{"finding": "ascites"}]', "row 0 .* needs finding, side, size_mm, certainty"),
        ('[{"finding": "x", "side": null, "size_mm": null, "certainty": "present"}]', "unknown finding 'x'"),
        ('[{"finding": "ascites", "side": null, "size_mm": null, "certainty": "sure"}]', "certainty 'sure'"),
    ],
)
def test_json_off_the_schema_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_json(text)


def test_structured_scores_by_hand() -> None:
    truth, other = structured(REPORT), structured(REPORT.replace("12 mm", "15 mm").replace("left", "right"))
    got = score_structured([truth, truth], [truth, other], ["a", "b"], training=[truth[2:]], replicates=20)
    assert got["size_error_mm"]["value"] == pytest.approx(1.5)
    assert got["certainty_accuracy"]["value"] == 1.0
    assert got["finding_precision_micro"]["value"] == pytest.approx(5 / 6)
    assert got["baselines"]["text_prior"]["finding_recall"] < 1
    blind, normal = got["baselines"]["blind"], got["baselines"]["always_normal"]
    assert blind == {name: got[name]["value"] for name in blind}, "two alike studies: dealt over, the same scores"
    assert {"laterality_accuracy", "size_error_mm", "certainty_accuracy"} <= set(blind)
    assert normal["finding_recall"] == normal["exact_match"] == 0
    assert normal["size_error_mm"] is None


@pytest.mark.parametrize("task", [ReportGeneration, StructuredReport])
def test_a_model_that_repeats_the_earlier_report_is_no_better_than_blind(task: type) -> None:
    texts = ["There is ascites.", "There is a left renal stone.", "The liver is normal.", "There is splenomegaly."]
    studies = [
        study(f"s{n}", patient=f"p{n}", report=text, meta={"prior_report": text}) for n, text in enumerate(texts)
    ]
    judge = task(model(*texts), prior=True)
    repeats = {
        one.study: {judge.kind: structured(one.report) if task is StructuredReport else one.report} for one in studies
    }
    found = judge.score(Evidence(studies, repeats, blind=lambda: repeats, replicates=5))[judge.kind]
    assert found["finding_f1"]["value"] == found["baselines"]["blind"]["finding_f1"] == 1.0


@cache
def sample(number: int) -> world.Sample:
    return world.study(number)


def toy(numbers: range, turned: int) -> Batch:
    made = collate([sample(number) for number in numbers])
    order = torch.arange(len(made)).roll(turned)
    return replace(made, image=made.image[order].float() / 300, finding_mask=made.finding_mask[order])


@pytest.mark.slow
@pytest.mark.learn
@pytest.mark.parametrize("shuffled", [False, True], ids=["true", "shuffled"])
def test_json_is_learnt_from_the_volume_and_not_without_it(shuffled: bool) -> None:
    both = "There is a left pleural effusion. There is a right pleural effusion."
    lm = model(to_json(structured(both)), STRUCTURED)
    maps = FindingMaps(lm, findings=world.FINDINGS, cells=(1, 1, 1), top_cells=2)
    task = StructuredReport(lm, findings=["pleural effusion"], max_new_tokens=60)
    parts = [toy(range(first, first + 16), 7 if shuffled else 0) for first in range(0, 160, 16)]
    seen = torch.optim.AdamW([*lm.encoder.parameters(), *maps.parameters()], lr=2e-3)
    for step in range(60):
        now = parts[step % len(parts)]
        descend(seen, maps.loss(lm, lm.encode(now.image, now.affine), now).loss)
    frozen = [lm.encode(now.image, now.affine) for now in parts]
    for features in frozen:
        features.tokens = features.tokens.detach()
    spoken_by = torch.optim.AdamW([*lm.projector.parameters(), *lm.language.parameters()], lr=3e-3)
    for step in range(120):
        now = step % len(parts)
        descend(spoken_by, task.loss(lm, frozen[now], parts[now]).loss)
    lm.eval()
    unseen = toy(range(1000, 1032), 0)
    with torch.no_grad():
        rows = task.predict(lm, lm.encode(unseen.image, unseen.affine), unseen)
    predictions = {study.study: row for study, row in zip(unseen.studies, rows, strict=True)}
    scores = task.score(Evidence(unseen.studies, predictions, replicates=20))["structured"]
    value = scores["finding_f1"]["value"]
    assert value < 0.75 if shuffled else value >= 0.9, value


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
