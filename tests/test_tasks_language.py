"""Every task that reads or writes with the language model, over the language models and projectors it may meet."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import world

import vol3d
import vol3d.tasks
from vol3d.data.batch import Batch, collate
from vol3d.model.interfaces import Projector, Task
from vol3d.model.pretrained import build, save
from vol3d.tasks import (
    VQA,
    FindingQueries,
    FindingsThenImpression,
    OrganReports,
    PromptSegmentation,
    ReportGeneration,
    Retrieval,
    StructuredReport,
    ZeroShot,
)

GRID = vol3d.Grid(spacing=(1.0, 1.0, 1.0), shape=(16, 16, 8), window=(-300, 300))
REPORT = "FINDINGS:\nLungs and pleura: {}\nIMPRESSION:\n{}"
QUESTIONS = [
    {"question": "On which side?", "answer": "left", "choices": ["left", "right"]},
    {"question": "What is there?", "answer": "an effusion"},
]
TASKS: dict[str, Callable[[vol3d.VolumeLM], Task]] = {
    "VQA": partial(VQA, max_new_tokens=4),
    "FindingQueries": partial(FindingQueries, findings=world.FINDINGS, read="visual"),
    "FindingsThenImpression": partial(FindingsThenImpression, max_new_tokens=4),
    "OrganReports": partial(OrganReports, organs=["lower thorax"], max_new_tokens=4),
    "PromptSegmentation": partial(PromptSegmentation, text="language", dim=16, num_heads=2, pixel_dim=4),
    "ReportGeneration": partial(ReportGeneration, max_new_tokens=4),
    "Retrieval": partial(Retrieval, text_encoder="language", embed_dim=8),
    "StructuredReport": partial(StructuredReport, findings=["pleural effusion"], max_new_tokens=48),
    "ZeroShot": partial(ZeroShot, text_encoder="language", embed_dim=8, findings=["ascites"], attributes=False),
}
SILENT = {"EHRCodes", "FindingMaps", "Grounding", "MaskedVolume", "Outcomes", "Regions"}


def model(projector: Callable[[int, int], Projector] | None = None) -> vol3d.VolumeLM:
    return vol3d.VolumeLM(
        vol3d.encoders.create("vit3d-tiny", embed_dim=24, depth=1, num_heads=2, patch_size=(8, 8, 4), stem="conv"),
        projector or partial(vol3d.PerceiverProjector, num_latents=4, num_heads=2),
        vol3d.LanguageModel.scratch([REPORT], embed_dim=32, depth=3, num_heads=2, vocab_size=300),
    )


def batch() -> Batch:
    made = collate([world.study(number) for number in (2, 3)])
    labels = dict.fromkeys(world.FINDINGS, 1)
    studies = [
        replace(
            study, report=REPORT.format(study.report, study.report), questions=QUESTIONS, labels_known=labels,
            findings=f"Lungs and pleura: {study.report}", impression=study.report,
        )
        for study in made.studies
    ]  # fmt: skip
    return replace(made, studies=studies, image=made.image.float() / 300)


def test_every_task_is_here_or_leaves_the_language_model_alone() -> None:
    assert set(TASKS) | SILENT == set(vol3d.tasks.__all__)


@pytest.mark.parametrize("scales", [True, False])
@pytest.mark.parametrize("name", TASKS)
def test_what_a_projector_injects_is_learnt_and_read(name: str, scales: bool) -> None:
    dims = [16, 16] if scales else []
    made = model(partial(vol3d.MultiLayerProjector, layers=[0, 1], scale_dims=dims))
    task, part = TASKS[name](made), batch()
    features = made.encode(part.image, part.affine)
    task.loss(made, features, part).loss.backward()
    # A task that ends at the visual tokens does not see what is added behind them.
    assert all((gate.grad is not None) == (name != "FindingQueries") for gate in made.projector.gates)
    task.eval()
    with torch.no_grad():
        assert len(task.predict(made, made.encode(part.image, part.affine), part)) == 2


@pytest.mark.parametrize("name", TASKS)
def test_a_bfloat16_language_model_is_read_without_autocast_after_it_was_saved(name: str, tmp_path: Path) -> None:
    """Training casts by itself (bf16-mixed); evaluating, embedding and searching do not."""
    made = model()
    made.language.causal_lm.to(torch.bfloat16)
    save(tmp_path / "model", made, {"task": TASKS[name](made)}, GRID)
    again, tasks, _ = build(tmp_path / "model")
    assert again.language.causal_lm.dtype == torch.bfloat16
    part = batch()
    features = again.encode(part.image, part.affine)
    loss = tasks["task"].loss(again, features, part).loss
    loss.backward()
    assert torch.isfinite(loss)
    with torch.no_grad():
        assert len(tasks["task"].predict(again, features, part)) == 2
