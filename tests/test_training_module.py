"""Training: stages freeze what they say, tasks without labels cost nothing, a resumed run goes on alike."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import labelled_world
import lightning
import pytest
import torch
import world
from lightning.pytorch.callbacks import ModelCheckpoint
from small_language import language
from torch.utils.data import DataLoader

import vol3d
from vol3d.data.batch import collate
from vol3d.data.dataset import VolumeData
from vol3d.data.manifest import Manifest
from vol3d.model.adapters import recompute_frozen
from vol3d.model.language import Scratch
from vol3d.model.projectors import MixerProjector
from vol3d.phantom import write
from vol3d.tasks import (
    VQA,
    FindingMaps,
    FindingsThenImpression,
    OrganReports,
    PromptSegmentation,
    ReportGeneration,
)
from vol3d.training.consolidate import read_whole, write_model
from vol3d.training.module import VolumeModule
from vol3d.training.rehearsal import Held
from vol3d.training.stages import Schedule, Stage
from vol3d.volume.grid import Grid

SPEAKERS = ["projector", "language"]


def fit(steps: int, folder: Path, model=None, data=None, ckpt_path=None, callbacks=(), **settings):
    model = model or world.module(settings.pop("stages", None))
    losses = world.Losses()
    run = world.trainer(steps, folder, callbacks=[losses, *callbacks], **settings)
    run.fit(model, data or world.World([world.study(n) for n in range(32)]), ckpt_path=ckpt_path)
    return model, losses.values


def test_a_stage_trains_its_parts_and_nothing_else(tmp_path: Path) -> None:
    class Moves(lightning.Callback):
        """Which parts have moved since the last time."""

        def __init__(self) -> None:
            self.seen: list[set[str]] = []
            self.before: dict[str, torch.Tensor] = {}

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            now = {name: value.clone() for name, value in pl_module.state_dict().items()}
            changed = [name for name, value in self.before.items() if not torch.equal(value, now[name])]
            self.seen.append({name.split(".")[1] for name in changed})
            self.before = now

    moves = Moves()
    stages = {"see": Stage(3, ["findings"], ["encoder", "tasks"]), "speak": Stage(None, ["report"], SPEAKERS)}
    fit(6, tmp_path, stages=stages, callbacks=[moves])
    assert moves.seen[1:] == [{"encoder", "findings"}] * 2 + [set(SPEAKERS)] * 3


def test_a_task_whose_layers_are_frozen_draws_anew_each_step(tmp_path: Path) -> None:
    questions = [{"question": f"Number {n}?", "answer": str(n)} for n in range(10)]
    studies = [world.study(n, mask=False) for n in range(4)]
    studies = [replace(one, study=replace(one.study, questions=questions)) for one in studies]
    model = world.module({"speak": Stage(None, ["report"], SPEAKERS)})
    model.task_factories["report"] = partial(VQA, questions="manifest", per_study=2)
    asked: list[tuple[str, ...]] = []

    class Listening(lightning.Callback):
        def on_fit_start(self, trainer, pl_module) -> None:
            inner = pl_module.model.language_loss
            pl_module.model.language_loss = lambda *given: asked.append(tuple(given[2])) or inner(*given)

    model, _ = fit(6, tmp_path, model, world.World(studies, batch_size=4), callbacks=[Listening()])
    assert len(set(asked)) == int(model.tasks["report"].step) == 6
    assert not model.tasks["findings"].head.training, "its layers are as the stage says"


def test_a_frozen_language_model_recomputes_where_it_is_asked_to() -> None:
    model = language("llama").eval()
    model.causal_lm.requires_grad_(False).gradient_checkpointing_enable({"use_reentrant": False})
    embeds, labels = torch.randn(2, 64, 32, requires_grad=True), torch.randint(5, 20, (2, 64))
    losses, sizes = [], []
    for recomputes in (False, True):
        if recomputes:
            recompute_frozen(model)
        with Held(model, torch.optim.SGD([embeds])) as counter:
            losses.append(model.loss(embeds, torch.ones_like(labels), labels))
        sizes.append(counter.live - counter.weights)
    assert torch.equal(*losses)
    assert sizes[1] < sizes[0] / 2
    assert not any(layer.mlp.training for layer in model.causal_lm.get_decoder().layers)


def test_features_of_a_frozen_encoder_are_computed_once_and_change_no_loss(tmp_path: Path) -> None:
    stages = {"speak": Stage(None, ["report"], SPEAKERS, 1e-3)}
    runs = {}
    for size in (0.0, 1.0):
        model = world.module(stages, feature_cache_gb=size)
        calls = []
        model.encoder.register_forward_hook(lambda module, args, output, calls=calls: calls.append(len(args[0])))
        runs[size] = (fit(12, tmp_path, model)[1], sum(calls))
    assert runs[1.0][1] == 32
    assert runs[0.0][1] == 12 * 8
    assert runs[1.0][0] == pytest.approx(runs[0.0][0], abs=1e-5)


def test_a_projector_that_reads_finer_maps_learns_from_a_frozen_encoder(tmp_path: Path) -> None:
    model = world.module({"connect": Stage(None, ["report"], ["projector"], 1e-3)})
    model.projector_factory = partial(
        MixerProjector, grid_size=(4, 4, 4), fine_grid=(8, 8, 8), fine_dim=24, num_tokens_fine=(8, 4),
        num_tokens_coarse=(8, 4),
    )  # fmt: skip
    _, losses = fit(4, tmp_path, model)
    assert losses[-1] < losses[0]


def test_a_stage_whose_tasks_teach_nothing_that_it_trains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'connect' trains projector, on which the loss of findings does not depend"):
        fit(1, tmp_path, stages={"connect": Stage(None, ["findings"], ["projector"])})


@pytest.mark.parametrize(
    "task", [ReportGeneration, FindingsThenImpression, partial(OrganReports, organs=["liver"])], ids=["a", "b", "c"]
)
def test_a_report_that_is_too_long_is_told_before_the_first_step(task, tmp_path: Path) -> None:
    studies = [world.study(n) for n in range(4)]
    findings = "Liver: " + "normal and smooth in all its parts, " * 20
    for number, times in ((1, 1), (2, 2)):
        texts = {"findings": findings * times, "report": f"FINDINGS: {findings * times}"}
        studies[number] = replace(studies[number], study=replace(studies[number].study, **texts))
    model, steps = world.module({"speak": Stage(None, ["report"], SPEAKERS)}), []
    model.task_factories["report"] = task
    model.language = replace(model.language, max_length=128)
    model.training_step = lambda *given: steps.append(given)
    data = world.World(studies, batch_size=2)
    data.grid = Grid(name="world", spacing=(1.0, 1.0, 1.0), shape=(16, 16, 8))
    told = r"text of study 's2' take \d+ tokens, 4 of them .* holds 128. It is the longest of 2 such among 4 training"
    with pytest.raises(ValueError, match=told):
        fit(1, tmp_path, model, data)
    assert not steps


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "Is the liver normal? " * 40}, r"'report': prompt and text of study 's2' take \d+ tokens"),
        ({"answer": "no", "choices": ["yes", "no", "no"]}, r"study 's2', question 'Is it\?': 3 choices, 2 of them"),
    ],
)
def test_a_question_that_cannot_be_learnt_is_told_before_the_first_step(row: dict, told: str, tmp_path: Path) -> None:
    studies = [world.study(n) for n in range(4)]
    for number, one in enumerate(studies):
        asked = [{"question": "Is it?", "answer": "yes"} | (row if number == 2 else {})]
        studies[number] = replace(one, study=replace(one.study, questions=asked))
    model, steps = world.module({"speak": Stage(None, ["report"], SPEAKERS)}), []
    model.task_factories["report"] = VQA
    model.language = replace(model.language, max_length=128)
    model.training_step = lambda *given: steps.append(given)
    data = world.World(studies, batch_size=2)
    data.grid = Grid(name="world", spacing=(1.0, 1.0, 1.0), shape=(16, 16, 8))
    with pytest.raises(ValueError, match=told):
        fit(1, tmp_path, model, data)
    assert not steps


def test_a_study_without_a_label_costs_its_task_nothing(tmp_path: Path) -> None:
    whole = [world.study(n) for n in range(4)]
    silent = [world.study(n, report=False, mask=False) for n in range(4, 8)]
    model, _ = fit(1, tmp_path, data=world.World(whole, batch_size=4))
    model.eval()
    data = world.World(whole)
    for name, task in model.tasks.items():
        outputs = []
        for samples in (whole, whole + silent):
            batch = data.on_after_batch_transfer(world.collate(samples), 0)
            outputs.append(task.loss(model.model, model.model.encode(batch.image, batch.affine), batch))
        assert [output.count for output in outputs] == [4, 4], name
        torch.testing.assert_close(outputs[0].loss, outputs[1].loss, msg=name)


def test_finding_maps_learn_nothing_of_findings_that_a_study_does_not_name() -> None:
    lm = labelled_world.model()
    task = FindingMaps(lm, findings=[world.FINDINGS[0], "liver lesion"], cells=(1, 1, 1), top_cells=2)
    batch = collate([world.study(n) for n in range(4)])
    batch = replace(batch, image=batch.image.float() / 300)
    task.loss(lm, lm.encode(batch.image, batch.affine), batch).loss.backward()
    effusion, lesion = task.head.bias.grad
    assert effusion != 0
    assert lesion == 0, "nobody looked for it: neither its cells nor its presence count"
    others = replace(batch, studies=[replace(study, finding_labels={"effusion": 1}) for study in batch.studies])
    assert task.loss(lm, lm.encode(batch.image, batch.affine), others).loss is None


def test_a_pass_without_any_label_is_refused_with_its_studies(tmp_path: Path) -> None:
    silent = [world.study(n, report=False, mask=False) for n in range(8)]
    data = world.World(silent, batch_size=4)
    data.manifest = world.World([world.study(9)]).manifest
    with pytest.raises(
        ValueError, match=r"\(findings, report\) found a label in all 2 batches of a pass, \['s4', .* give the manifest"
    ):
        fit(4, tmp_path, data=data)


def few_masks(folder: Path, labelled: int) -> VolumeData:
    """Ten studies in batches of four: each pass leaves out two others."""
    studies = list(
        Manifest.read(write(folder, studies=10, shape=(16, 16, 16), findings=["pleural effusion"], prevalence=1.0))
    )
    silent = {"split": "train", "finding_mask": None, "finding_labels": {}}
    studies = [replace(one, **silent if place >= labelled else {"split": "train"}) for place, one in enumerate(studies)]
    grid = Grid(spacing=(25, 25, 50), shape=(16, 16, 8), window=(-160, 240))
    return VolumeData(Manifest(studies), grid, batch_size=4, in_memory=True)


def test_a_labelled_study_that_a_pass_leaves_out_does_not_end_the_run(tmp_path: Path) -> None:
    stages = {"see": Stage(None, ["findings"])}
    _, losses = fit(40, tmp_path, stages=stages, data=few_masks(tmp_path, 1))
    passes = [any(losses[start : start + 2]) for start in range(0, 40, 2)]
    assert 0 < passes.count(False) < 20
    with pytest.raises(ValueError, match="found a label in all 6 batches of 3 passes"):
        fit(40, tmp_path, stages=stages, data=few_masks(tmp_path, 0))


def test_a_batch_without_any_label_among_others_moves_nothing(tmp_path: Path) -> None:
    """Its loss is 0: summed over two batches, the gradient is the labelled one's alone."""
    labelled = [world.study(n) for n in range(8)]
    silent = [world.study(n, report=False, mask=False) for n in range(8, 16)]
    stages = {"see": Stage(None, ["findings"], learning_rate=1e-3)}
    gradients = {}

    class Keep(lightning.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            named = pl_module.named_parameters()
            gradients[trainer.accumulate_grad_batches] = {n: p.grad.clone() for n, p in named if p.grad is not None}

    fit(1, tmp_path, world.module(stages), world.World(labelled), callbacks=[Keep()])
    both = world.World(silent + labelled)
    fit(1, tmp_path, world.module(stages), both, callbacks=[Keep()], accumulate_grad_batches=2)
    assert gradients[1].keys() <= gradients[2].keys()
    for name, gradient in gradients[2].items():
        torch.testing.assert_close(2 * gradient, gradients[1].get(name, torch.zeros_like(gradient)), msg=name)


def test_a_resumed_run_has_the_same_losses(tmp_path: Path) -> None:
    """Killed in the second stage and resumed: every loss after that is the uninterrupted run's."""
    stages = {
        "see": Stage(6, ["findings"], ["encoder", "tasks"], 1e-3, warmup=2),
        "speak": Stage(None, ["report"], SPEAKERS, 1e-3),
    }
    _, whole = fit(16, tmp_path, stages=stages)
    saver = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=4, save_top_k=-1)
    fit(16, tmp_path, stages=stages, callbacks=[saver], enable_checkpointing=True)
    (checkpoint,) = (tmp_path / "checkpoints").glob("*step=8.ckpt")
    _, rest = fit(16, tmp_path, stages=stages, ckpt_path=checkpoint)
    assert rest == pytest.approx(whole[8:], abs=1e-6)
    assert len(set(rest)) == len(rest)


def test_validation_asks_the_same_each_time_and_moves_no_training(tmp_path: Path) -> None:
    """Prompts are drawn by torch's generator: those of a validation must not shift those of training."""

    class Validated(world.World):
        def val_dataloader(self) -> DataLoader:
            return DataLoader(self.train, batch_size=8, collate_fn=collate, generator=torch.Generator())

    def module() -> VolumeModule:
        torch.manual_seed(0)
        encoder = vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=1, num_heads=2, patch_size=(4, 4, 2))
        return VolumeModule(encoder, {"masks": partial(PromptSegmentation, dim=16, depth=1, num_heads=2, pixel_dim=4)})

    samples = [world.study(number) for number in range(16)]
    _, alone = fit(4, tmp_path, module(), world.World(samples))
    trained, between = fit(4, tmp_path, module(), Validated(samples), val_check_interval=1)
    assert between == alone
    runs = [world.trainer(1, tmp_path).validate(trained, Validated(samples), verbose=False)[0] for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0]["val/masks_loss"] > 0


def test_gradient_accumulation_equals_the_large_batch(tmp_path: Path) -> None:
    """Two batches of 8 or one of 16: the same weights after a step, because each task's loss is a mean."""
    studies = [world.study(n) for n in range(16)]
    stages = {"see": Stage(None, ["findings"], learning_rate=1e-3)}
    large, _ = fit(1, tmp_path, world.module(stages), world.World(studies, batch_size=16))
    small, _ = fit(1, tmp_path, world.module(stages), world.World(studies, batch_size=8), accumulate_grad_batches=2)
    for (name, one), two in zip(large.named_parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-4, msg=name)


def test_bf16_training_goes_down(tmp_path: Path) -> None:
    _, losses = fit(30, tmp_path, stages={"see": Stage(None, ["findings"], learning_rate=2e-3)}, precision="bf16-mixed")
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


def test_without_a_report_a_tokenizer_learns_from_questions(tmp_path: Path) -> None:
    write(tmp_path, studies=2, shape=(24, 24, 16), seed=0)
    asked = [{"question": "Which phase is this?", "answer": "venous phase"}]
    bare = {"report": None, "findings": None, "impression": None, "questions": asked, "split": "train"}
    studies = [replace(study, **bare) for study in Manifest.read(tmp_path / "manifest.jsonl")]

    def module() -> VolumeModule:
        encoder = vol3d.encoders.create("vit3d-tiny", embed_dim=48, depth=1, num_heads=2)
        language = Scratch(300, embed_dim=32, depth=1, num_heads=2)
        projector = partial(vol3d.PerceiverProjector, num_latents=4, num_heads=2, depth=1)
        return VolumeModule(encoder, {"vqa": partial(VQA, questions="manifest")}, projector, language)

    grid = Grid(spacing=(16.0, 16.0, 24.0), shape=(24, 24, 16), window=(-1000.0, 1000.0))
    model, losses = fit(1, tmp_path, module(), VolumeData(Manifest(studies), grid))
    assert len(losses) == 1
    assert len(model.model.language.encode("venous phase")) < len("venous phase")
    silent = Manifest(replace(study, questions=[]) for study in studies)
    with pytest.raises(ValueError, match=r"0 rows with a report or questions; give it some .*add_questions"):
        fit(1, tmp_path, module(), VolumeData(silent, grid))


def test_changed_reports_are_noticed_on_resume_and_when_a_checkpoint_becomes_a_model(tmp_path: Path) -> None:
    def model() -> VolumeModule:
        made = world.module()
        made.language = replace(made.language, vocab_size=266)  # few enough that any reports fill them
        return made

    saver = ModelCheckpoint(tmp_path, filename="x")
    fit(2, tmp_path, model(), callbacks=[saver], enable_checkpointing=True)
    other = [world.study(n) for n in range(8)]
    object.__setattr__(other[0].study, "report", "An entirely different wording of splenomegaly.")
    told = r"tokenizer has (\d+) tokens, this run's \1, .*reports have changed.*; give the manifest.*--model\.base"
    with pytest.raises(ValueError, match=told):
        fit(4, tmp_path, model(), world.World(other), ckpt_path=tmp_path / "x.ckpt")
    # As many words, so every weight has its shape.
    with pytest.raises(ValueError, match=told):
        write_model(model(), world.World(other), read_whole(tmp_path / "x.ckpt"), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_schedule_names_both_lengths_when_they_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"take 30 steps and the trainer stops after 20"):
        Schedule({"a": Stage(10), "b": Stage(20)}, 20)
    with pytest.raises(ValueError, match="stage 'a' has no steps"):
        Schedule({"a": Stage(), "b": Stage(5)}, 20)
    with pytest.raises(ValueError, match=r"trains \['decoder'\]"):
        Stage(train=["decoder"])


def test_schedule_warms_up_and_comes_down_in_every_stage() -> None:
    schedule = Schedule(
        {
            "a": Stage(10, train=["encoder"], learning_rate=1.0, warmup=2),
            "b": Stage(learning_rate=1.0, learning_rates={"encoder": 0.5}),
        },
        20,
    )
    rates = [schedule.rate("encoder", step) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert 0.1 <= rates[9] < 0.2
    assert rates[10] == 0.5
    assert [schedule.rate("language", step) for step in (0, 9, 10)] == [0.0, 0.0, 1.0]


def test_what_a_stage_would_ignore_is_refused() -> None:
    with pytest.raises(ValueError, match=r"learning_rates names \['language'\], the stage trains \['projector'\]: add"):
        Stage(train=["projector"], learning_rates={"language": 1e-5, "projector": 1e-3})
    with pytest.raises(ValueError, match="a stage of 0 steps: give 1 or more"):
        Stage(0)


def test_unknown_task_in_a_stage_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"stage 'x' names tasks \['segmentation'\], there are \['findings', 'report'\]"
    ):
        world.module({"x": Stage(tasks=["segmentation"])})


@pytest.mark.learn
@pytest.mark.parametrize("shuffled", [False, True], ids=["true", "shuffled"])
def test_reports_are_learnt_from_the_volume_and_not_without_it(tmp_path: Path, shuffled: bool) -> None:
    """See, then speak: unseen studies are told right; when each study is shown another's volume, they are not."""
    train, test = [world.study(n) for n in range(96)], [world.study(n) for n in range(1000, 1048)]
    if shuffled:
        volumes = [(sample.hu, sample.finding_mask) for sample in train[7:] + train[:7]]
        for sample, (hu, mask) in zip(train, volumes, strict=True):
            sample.hu, sample.finding_mask = hu, mask
    stages = {"see": Stage(80, ["findings"], ["encoder", "tasks"], 2e-3), "speak": world.SPEAK}
    data = world.World(train, test)
    model, _ = fit(400, tmp_path, world.module(stages), data)
    predictions = [row for rows in world.trainer(1, tmp_path).predict(model, data) for row in rows]
    right = sum(row["report"] == sample.study.report for row, sample in zip(predictions, test, strict=True)) / len(test)
    assert right < 0.5 if shuffled else right >= 0.85, right
