"""The one LightningModule: a shared model, a dict of tasks, and stages that say who learns when."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vol3d.data.batch import Batch
from vol3d.data.study import texts_of
from vol3d.model.adapters import parameter_table, recompute_frozen
from vol3d.model.cross_entropy import is_sharded
from vol3d.model.fine_tuning import Base
from vol3d.model.interfaces import Encoder, Features, Projector, Task, predicting
from vol3d.model.language import LanguageModel, LanguageSource
from vol3d.model.volume_lm import VolumeLM
from vol3d.training.chances import Chances, chances, draw_apart, set_chances
from vol3d.training.contrastive import any_rank
from vol3d.training.features import FeatureCache
from vol3d.training.lockstep import Lent, lend
from vol3d.training.means import Means, first_visits
from vol3d.training.mixing import Mixture, conflicts
from vol3d.training.optim import Kind, adamw
from vol3d.training.preflight import check_batch, check_lengths
from vol3d.training.stages import PARTS, Schedule, Stage

logger = logging.getLogger(__name__)


def training_texts(data: Any) -> list[str]:
    """What a tokenizer learns from: the texts of the training studies of every manifest that a stage reads."""
    manifests = [] if data is None else [data.manifest, *getattr(data, "others", {}).values()]
    return texts_of(study for manifest in manifests for study in manifest.split("train"))


class VolumeModule(lightning.LightningModule):
    """Trains a VolumeLM on any mixture of tasks.

    A step runs the encoder once; every task of the stage reads the features and the labels it needs. The loss is
    Σ weight · loss over the tasks that found labels in the batch; a task that found none costs nothing, and how
    many studies each task saw is logged. While the encoder is frozen its features are kept in memory.

    Args:
        encoder: image → Features.
        tasks: name → callable (model) → Task; in Python `functools.partial(ReportGeneration, target="report")`.
        projector: callable (in_dim, out_dim) → Projector; needed with a language model.
        language: a LanguageModel, or a source (Scratch, Pretrained) built when fitting starts, because a scratch
            tokenizer is trained on the training reports, or on the questions where there are none.
        stages: name → Stage, in their order; None for one stage in which everything learns.
        mixture: how the tasks' losses become one; None adds them up by their weights.
        base: folder of a saved model to fine-tune: the encoder, the projector, the language model and the tasks of the
            same name begin with its weights. The saved model names it, and `vol3d evaluate` compares the two.
        weight_decay: AdamW's, for matrices; vectors (norms, biases) have none.
        betas: AdamW's.
        optimizer: "adamw"; "paged_adamw" or "paged_adamw_8bit", whose moments leave a full GPU (`training.optim`).
        feature_cache_gb: memory for the features of a frozen encoder; 0 encodes every time.

    Raises:
        ValueError: no task, a stage that names an unknown task, or stages that do not fit the trainer's steps.
    """

    def __init__(
        self,
        encoder: Encoder,
        tasks: dict[str, Callable[[VolumeLM], Task]],
        projector: Callable[[int, int], Projector] | None = None,
        language: LanguageModel | LanguageSource | None = None,
        stages: dict[str, Stage] | None = None,
        mixture: Mixture | None = None,
        base: str | None = None,
        *,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.98),
        optimizer: Kind = "adamw",
        feature_cache_gb: float = 2.0,
    ) -> None:
        super().__init__()
        if not tasks:
            raise ValueError("a VolumeModule needs at least one task, got none")
        stages = stages or {"all": Stage()}
        for name, stage in stages.items():
            if unknown := set(stage.tasks or []) - set(tasks):
                raise ValueError(f"stage {name!r} names tasks {sorted(unknown)}, there are {sorted(tasks)}")
        self.encoder, self.projector_factory, self.task_factories = encoder, projector, tasks
        self.language, self.base = language, base
        self.stages, self.weight_decay, self.betas, self.optimizer = stages, weight_decay, betas, optimizer
        self.mixture = mixture or Mixture()
        self.mixture.prepare(list(tasks))
        self.feature_cache = FeatureCache(feature_cache_gb)
        self.means = Means()
        self.model: VolumeLM | None = None
        self.stage: str | None = None
        self.unlabelled: int | None = 0
        """Batches of the present stage, all without a label for its tasks; None once one had some."""
        self._chances: list[Chances] | None = None

    # --- building -------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the model and its tasks once (Lightning calls this before fitting, after the data's setup)."""
        if self.model is not None:
            return
        base = None if self.base is None else Base.read(self.base)
        language = self.language
        if language is not None and not isinstance(language, LanguageModel):
            language = self.build_language(training_texts(getattr(self.trainer, "datamodule", None)), base)
        self.model = VolumeLM(self.encoder, self.projector_factory, language)
        tasks = {name: build(self.model) for name, build in self.task_factories.items()}
        self.tasks = nn.ModuleDict(tasks)
        if silent := [name for name in tasks if name not in predicting(tasks)]:
            logger.warning(
                "tasks %s train and do not predict: tasks named before them write the same fields of a prediction",
                ", ".join(silent),
            )
        if base is not None:
            base.give(self.model, tasks)
            data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
            if (grid := getattr(data, "grid", None)) is not None:
                base.compare_grid(grid)
        # The model owns the parts from here on; two names for one weight would be saved twice.
        del self.encoder
        self.language = None
        self.learnable = {id(parameter) for parameter in self.parameters() if parameter.requires_grad}

    def build_language(self, texts: Sequence[str], base: Base | None = None) -> LanguageModel:
        """The language model that its source names: the base's where it has one, else a new one for these texts."""
        if base is None and self.base is not None:
            base = Base.read(self.base)
        language = None if base is None else base.language(self.language)
        return self.language.build(texts) if language is None else language

    def part(self, name: str) -> nn.Module | None:
        """A part of the model by the name stages know it by; how tasks are mixed is learnt with the tasks."""
        return nn.ModuleList([self.tasks, self.mixture]) if name == "tasks" else getattr(self.model, name)

    # --- steps ----------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> Features:
        return self.model.encode(batch.image, batch.affine)

    def features(self, batch: Batch) -> Features:
        """The batch's features, from memory while the encoder is frozen."""
        if not self.may_keep(batch):
            return self.encode(batch)
        divided = any(is_sharded(parameter) for parameter in self.model.encoder.parameters())
        wanted = partial(any_rank, device=self.device) if divided else bool
        return self.feature_cache(batch, self.encode, wanted=wanted)

    def may_keep(self, batch: Batch) -> bool:
        """Whether the present stage keeps the features of this batch's studies."""
        if not self.training or self.stage is None or batch.augmented or self.feature_cache.limit == 0:
            return False
        stage = self.stages[self.stage]
        readers = [self.tasks[name] for name in stage.tasks or self.tasks]
        readers += [] if self.model.projector is None else [self.model.projector]
        return "encoder" not in stage.train and not any("scales" in part.uses for part in readers)

    def _project(self, features: Features, names: Sequence[str]) -> Features:
        """The features with their visual tokens, when a task of these uses them."""
        if any("visual" in self.tasks[name].uses for name in names):
            features.visual = self.model.project(features)
        return features

    def _see(self, batch: Batch, names: Sequence[str]) -> Features | None:
        """What these tasks read of the batch; None when each of them encodes for itself."""
        if all(self.tasks[name].encodes for name in names):
            return None
        return self._project(self.features(batch), names)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        names = self.stages[self.stage].tasks or list(self.tasks)
        one = self.mixture.proportions is not None
        for drawn in [[name] for name in self.mixture.draw(names, self.global_step)] if one else [names]:
            loss = self._losses(batch, drawn, "train")
            # The next one takes its place where no process has its labels, so that all of them run the same task.
            if one and any_rank(loss is not None, self.device):
                break
        self.unlabelled = None if self.unlabelled is None or loss is not None else self.unlabelled + 1
        if self._trainer is not None and index + 1 == self.trainer.num_training_batches:
            self._check_labelled(batch, names)
        if loss is not None:
            self._check_learns(loss, drawn)
            return loss
        # Not None, which Lightning refuses under DDP, where another process may have labels.
        return sum(0.0 * parameter.sum() for parameter in self.parameters() if parameter.requires_grad)

    def _check_learns(self, loss: Tensor, names: Sequence[str]) -> None:
        """Raises:
        ValueError: the loss depends on nothing that the stage trains.
        """
        if not loss.requires_grad:
            raise ValueError(
                f"stage {self.stage!r} trains {', '.join(self.stages[self.stage].train) or 'nothing'}, on which the "
                f"loss of {', '.join(names)} does not depend: add the parts it passes through to train, or name the "
                "tasks that teach these"
            )

    def _check_labelled(self, batch: Batch, names: Sequence[str]) -> None:
        """Rows may carry any mixture of labels, but some must carry one.

        Raises:
            ValueError: a stage found none, in no process, in so many passes that only once in a hundred times all of
                them would have left out a study that has one: what does not fill a batch is left out, each time
                another.
        """
        batches, loader = self.trainer.num_training_batches, self.trainer.train_dataloader
        visited = batches * (getattr(loader, "batch_size", None) or len(batch)) * self.trainer.world_size
        dataset = getattr(loader, "dataset", ())
        left = 1 - visited / max(visited, len(dataset) if hasattr(dataset, "__len__") else 0)
        passes = math.ceil(math.log(0.01) / math.log(left)) if left else 1
        if not any_rank(self.unlabelled is None or self.unlabelled < passes * batches, self.device):
            studies = [study.study for study in batch.studies]
            raise ValueError(
                f"no task of stage {self.stage!r} ({', '.join(names)}) found a label in all {self.unlabelled} batches "
                f"of {'a pass' if passes == 1 else f'{passes} passes'}, {studies} the last: give the manifest the "
                "labels these tasks learn from, or leave the task out"
            )

    def validation_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch, index, "val", self.trainer.val_dataloaders)

    def test_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch, index, "test", self.trainer.test_dataloaders)

    def _evaluate(self, batch: Batch, index: int, phase: str, loader: DataLoader[Any]) -> None:
        """A batch's losses for the means over all studies of all processes. A study that only fills up the last batch
        is left out; a batch of nothing else runs all the same, since divided weights are gathered together. What tasks
        draw is the same each time, so that epochs can be compared, and training draws on as if nothing had been."""
        rows = first_visits(batch, index, loader)
        shown = batch.select(rows) if 0 < len(rows) < len(batch) else batch
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(index)
            self._losses(shown, list(self.tasks), phase if rows else None)

    def on_validation_epoch_end(self) -> None:
        self._log_means()

    def on_test_epoch_end(self) -> None:
        self._log_means()

    def _log_means(self) -> None:
        for name, value in self.means.take().items():
            self.log(name, value, prog_bar=name.endswith("_loss"))

    def _note(self, phase: str | None, name: str, value: Any, weight: int | None) -> None:
        """Training's numbers go to the log at once, the others' when their epoch ends; those of no phase nowhere.

        Args:
            weight: studies the value is a mean over; None for a count.
        """
        if phase == "train":
            self.log(f"train/{name}", value, batch_size=weight or 1, prog_bar=name.endswith("_loss"))
        elif phase is not None and weight is None:
            self.means.count(f"{phase}/{name}", value)
        elif phase is not None:
            self.means.add(f"{phase}/{name}", value, weight)

    def predict_step(self, batch: Batch, index: int) -> list[dict[str, Any]]:
        features = self._project(self.encode(batch), list(self.tasks))
        rows: list[dict[str, Any]] = [{"study": study.study} for study in batch.studies]
        for task in predicting(dict(self.tasks.items())).values():
            for row, prediction in zip(rows, task.predict(self.model, features, batch), strict=True):
                row.update(prediction)
        return rows

    def _losses(self, batch: Batch, names: Sequence[str], phase: str | None) -> Tensor | None:
        features = self._see(batch, names)
        lent = self._lent(features, batch, names)
        losses: dict[str, Tensor] = {}
        for name in names:
            task = self.tasks[name]
            output = task.loss(self.model, features, batch)
            if name in lent:
                task.loss(self.model, *lent[name])
            self._note(phase, f"{name}_studies", float(output.count), None)
            if output.loss is None:
                continue
            self._note(phase, f"{name}_loss", output.loss.detach(), output.count)
            for key, value in output.log.items():
                self._note(phase, f"{name}_{key}", value, output.count)
            losses[name] = task.weight * output.loss
        if not losses:
            return None
        total = self.mixture.total(losses)
        self._note(phase, "loss", total.detach(), len(batch))
        if phase == "train":
            self._log_conflicts(losses, features)
        return total

    def _lent(self, features: Features | None, batch: Batch, names: Sequence[str]) -> dict[str, Lent]:
        """Evaluating with divided weights, another process's batch for the tasks that must run here without a label."""
        if self.training or not any(is_sharded(parameter) for parameter in self.parameters()):
            return {}
        return lend({name: self.tasks[name] for name in names}, self.model, features, batch)

    def _log_conflicts(self, losses: Mapping[str, Tensor], features: Features | None) -> None:
        every = self.mixture.conflicts_every
        if features is None or not every or self.global_step % every or len(losses) < 2:
            return
        shared = features.tokens if features.tokens.requires_grad else features.visual
        if shared is not None and shared.requires_grad:
            for pair, cosine in conflicts(losses, shared).items():
                self.log(f"train/cosine_{pair}", cosine)

    # --- stages and optimizer -------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        data = self.trainer.datamodule
        check_batch(self, data, self.trainer.world_size)
        check_lengths(self, data)

    def on_train_start(self) -> None:
        draw_apart()

    def on_train_batch_start(self, batch: Batch, index: int) -> int | None:
        name = self.schedule.name(self.global_step)
        if self.stages[name].data != getattr(self.trainer.datamodule, "reading", None):
            return -1  # ends the epoch; the next one reads this stage's manifest
        if self._chances is not None:
            set_chances(self._chances)
            self._chances = None
        if name != self.stage:
            self.enter(name)
        return None

    def enter(self, name: str) -> None:
        """Freeze what this stage does not train, and say how much it does."""
        self.stage, stage, self.unlabelled = name, self.stages[name], 0
        self.feature_cache.clear()
        for part_name in PARTS:
            part = self.part(part_name)
            if part is None:
                continue
            part.train(part_name in stage.train)
            for parameter in part.parameters():
                parameter.requires_grad_(part_name in stage.train and id(parameter) in self.learnable)
        for task in self.tasks.values():
            task.training = True  # in a training step a task draws and counts, whether or not its own layers learn
        if self.model.language is not None:
            recompute_frozen(self.model.language)
        parts = {part_name: part for part_name in PARTS if (part := self.part(part_name)) is not None}
        logger.info("stage %r learns:\n%s", name, parameter_table(parts))

    def configure_optimizers(self) -> dict[str, Any]:
        self._check_sources()
        self.schedule = Schedule(self.stages, int(self.trainer.estimated_stepping_batches))
        groups, rates = [], []
        for name in PARTS:
            part = self.part(name)
            learnable = [] if part is None else [p for p in part.parameters() if id(p) in self.learnable]
            for decay in (True, False):
                chosen = [p for p in learnable if (p.ndim > 1) == decay]
                if chosen:
                    groups.append({"params": chosen, "weight_decay": self.weight_decay if decay else 0.0})
                    rates.append(lambda step, name=name: self.schedule.rate(name, step))
        # The rates are absolute, so the base rate they multiply is 1.
        optimizer = adamw(groups, self.optimizer, betas=self.betas, precision=self.trainer.precision)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _check_sources(self) -> None:
        """Stages with a manifest of their own need it in the data, and a loader that is made anew each epoch."""
        wanted = {stage.data for stage in self.stages.values() if stage.data is not None}
        there = set(getattr(self.trainer.datamodule, "other_sources", {}))
        if wanted - there:
            raise ValueError(
                f"stages learn from {sorted(wanted - there)}, the data has {sorted(there) or 'no other manifest'}: "
                "name them in VolumeData(others={name: manifest})"
            )
        if wanted and self.trainer.reload_dataloaders_every_n_epochs != 1:
            raise ValueError("stages with data of their own need Trainer(reload_dataloaders_every_n_epochs=1)")

    # --- checkpoints ----------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Tasks draw prompts, dropout draws masks: a resumed run must draw as the whole one would have.
        checkpoint["chances"] = chances()
        if self.model.language is not None:
            checkpoint["vocabulary"] = self.model.language.tokenizer.get_vocab()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("chances")
        self._chances = [saved] if isinstance(saved, dict) else saved  # a checkpoint of before has the first process's
        saved = checkpoint.get("vocabulary")
        if saved is None or self.model is None or self.model.language is None:
            return
        own = self.model.language.tokenizer.get_vocab()
        if own != saved:
            raise ValueError(
                f"the checkpoint's tokenizer has {len(saved)} tokens, this run's {len(own)}, and they differ: the "
                "training reports have changed since; give the manifest the run was started with, or take its "
                "model, which knows its own words, to other studies: --model.base RUN/model in place of --ckpt_path"
            )
