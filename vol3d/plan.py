"""`vol3d plan`: what a recipe will cost in memory and time, told before a GPU is rented."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from vol3d.data.batch import Batch, Sample, collate
from vol3d.data.cache import sample
from vol3d.data.dataset import VolumeData
from vol3d.data.manifest import Manifest
from vol3d.data.study import Study, texts_of
from vol3d.model.hub import causal_lm_without_weights
from vol3d.model.language import LanguageModel, Pretrained
from vol3d.training.features import size_of
from vol3d.training.optim import STATE_SHARE
from vol3d.training.recipe import RecipeParts
from vol3d.training.rehearsal import Fakes, Footprint, fakes_of, rehearse
from vol3d.training.stages import PARTS

logger = logging.getLogger(__name__)

GB = 1e9
CONTEXT_GB, SPARE = 0.8, 1.05
"""What CUDA and its libraries take for themselves, and the share lost to fragments: both are rules of thumb."""
TFLOPS = {16: 65, 24: 121, 40: 312, 48: 181, 80: 312, 96: 990, 141: 990}
"""Dense bf16 peak of a common card of that many GB (T4, L4, A100, L40S, A100, H100, H200), data sheets."""
EFFICIENCY = 0.35
"""Of the peak a training step is guessed to reach."""
FOUR_BIT = 0.516
"""Bytes a weight takes in NF4 with double quantisation, block scales counted in (4.127 bits, arXiv:2305.14314)."""


@dataclass(frozen=True)
class StagePlan:
    """One stage at the recipe's batch size: bytes by part at the peak, and seconds a step (a guess).

    `kept` are the features of a frozen encoder (`feature_cache_gb`). Where tasks are drawn by proportions, memory is
    the dearest task's and time the mean over the draws.
    """

    stage: str
    batch_size: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    kept: int
    total: int
    seconds: float
    largest_batch: int


@dataclass(frozen=True)
class Plan:
    """A recipe's cost by stage, whether it fits, and what would make it fit."""

    gpu_gb: float
    fits: bool
    peak_gb: float
    stages: list[StagePlan]
    parameters: dict[str, dict[str, int]]
    advice: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{'stage':12}{'batch':>6}{'weights':>10}{'grads':>8}{'optim':>8}{'activ':>8}{'logits':>8}"]
        lines[0] += f"{'kept':>7}{'peak GB':>9}{'s/step':>8}{'max batch':>11}"
        for s in self.stages:
            parts = [s.weights, s.gradients, s.optimizer, s.activations, s.logits, s.kept]
            row = "".join(f"{part / GB:>{width}.2f}" for part, width in zip(parts, (10, 8, 8, 8, 8, 7), strict=True))
            lines.append(
                f"{s.stage:12}{s.batch_size:>6}{row}{s.total / GB:>9.2f}{s.seconds:>8.2f}{s.largest_batch:>11}"
            )
        verdict = "fits" if self.fits else "does not fit"
        lines.append(f"peak {self.peak_gb:.2f} GB with {CONTEXT_GB} GB of CUDA's own: {verdict} {self.gpu_gb:g} GB")
        return "\n".join([*lines, *self.advice])


def plan(recipe: Sequence[str], *, gpu_gb: float | int, tflops: float | int | None = None) -> Plan:
    """Rehearse every stage of a recipe on tensors without values, and say what it needs.

    Weights, gradients, optimizer state and activations are counted tensor by tensor as PyTorch would allocate them;
    kernels' scratch memory and fragments are not, and are covered by `SPARE`. Features of a frozen encoder are counted
    for all studies of the manifest, up to `feature_cache_gb`; without a manifest as much as that. Time is a guess from
    the step's floating point operations. The first studies of the recipe's manifest are looked at for the length of
    their texts; where there is no manifest yet, phantoms stand in.

    Args:
        recipe: as for `vol3d fit`: ["--config", "recipe.yaml", "--data.batch_size", "4"].
        gpu_gb: memory of the card, in GB (10^9 bytes).
        tflops: its dense bf16 peak; None takes that of a common card of this size.

    Raises:
        ValueError: a recipe that does not parse, a language model that is neither here nor reachable, or a card
            without memory or arithmetic.
    """
    if gpu_gb <= 0 or (tflops is not None and tflops <= 0):
        peak = "" if tflops is None else f" and {tflops:g} TFLOPS"
        raise ValueError(f"a card of {gpu_gb:g} GB{peak}: give its memory in GB, such as 24")
    tflops = tflops or TFLOPS[min(TFLOPS, key=lambda size: abs(size - gpu_gb))]
    samples = first_samples(RecipeParts(recipe).datamodule)
    asked = _Rehearsal(recipe, samples)
    room = (gpu_gb - CONTEXT_GB) * GB / SPARE
    stages = [_stage(asked, name, room, tflops) for name in asked.module.stages]
    peak = max(stage.total for stage in stages) * SPARE / GB + CONTEXT_GB
    worst = max(stages, key=lambda stage: stage.total)
    advice = [] if peak <= gpu_gb else _advice(recipe, samples, worst, room)
    return Plan(float(gpu_gb), peak <= gpu_gb, peak, stages, asked.counts(), advice)


def _stage(rehearsal: _Rehearsal, name: str, room: float, tflops: float | int) -> StagePlan:
    size = rehearsal.batch_size
    one, foot = rehearsal(name, 1), rehearsal(name, size)
    slope = (foot.total - one.total) / (size - 1) if size > 1 else rehearsal(name, 2).total - one.total
    largest = 1 + int((room - one.total) / max(1, slope)) if one.total <= room else 0
    parts = (foot.weights, foot.gradients, foot.optimizer, foot.activations, foot.logits, foot.kept, foot.total)
    return StagePlan(name, size, *parts, foot.flops / (tflops * 1e12 * EFFICIENCY), largest)


def _advice(recipe: Sequence[str], samples: list[Sample], worst: StagePlan, room: float) -> list[str]:
    """What makes the heaviest stage fit, each remedy tried by itself."""

    def needs(total: float | int) -> str:
        return f"{total / GB:.2f} GB, {'fits' if total <= room else 'not enough alone'}"

    advice = []
    lighter = _Rehearsal(recipe, samples, checkpointing=True)
    tasks = lighter.module.tasks
    least = max(tasks[name].least for name in lighter.module.stages[worst.stage].tasks or tasks)
    if worst.largest_batch >= least:
        made_up = "fewer studies to compare" if least > 1 else "accumulate_grad_batches makes up for it"
        advice.append(f"--data.batch_size {worst.largest_batch} fits ({made_up})")
    total = lighter(worst.stage, worst.batch_size).total
    if total < worst.total:
        where = "encoder and language.Pretrained"
        advice.append(f"recomputing activations (checkpointing: true, of {where}): {needs(total)}")
    if lighter.quantize():
        total = lighter(worst.stage, worst.batch_size).total
        advice.append(f"and a 4-bit base (quantization: 4bit): about {needs(total)}")
    saved = worst.optimizer * (1 - STATE_SHARE["paged_adamw_8bit"] / STATE_SHARE[lighter.module.optimizer])
    if saved > 0.05 * worst.total:
        advice.append(
            f"AdamW's moments in 8 bits (--model.optimizer paged_adamw_8bit): {needs(worst.total - saved)}; what is "
            "too much goes to the CPU's memory"
        )
    if worst.kept > 0.05 * worst.total:
        advice.append(
            f"keeping no features (--model.feature_cache_gb 0): {needs(worst.total - worst.kept)}; the encoder then "
            "runs at every step"
        )
    if not any("fits" in line and "not enough" not in line for line in advice):
        advice.append("a smaller model, or weights and optimizer spread over GPUs: overlays/fsdp2.yaml")
    return advice


class _Rehearsal:
    """A recipe's model on tensors without values; called with a stage and a batch size it tells a step's footprint."""

    def __init__(self, recipe: Sequence[str], samples: list[Sample], *, checkpointing: bool = False) -> None:
        self.samples = samples
        self.fakes = Fakes()
        with self.fakes:
            parsed = RecipeParts(recipe, here=False)  # the plan is for the card that is asked about
            self.module, self.data = parsed.model, parsed.datamodule
            self.grid, self.batch_size = self.data.grid, self.data.batch_size
            self.bf16 = parsed.precision.startswith("bf16")
            self.module.base = None  # whose weights take as much room as any
            source, four_bit = self.module.language, False
            if isinstance(source, Pretrained):
                four_bit = source.quantization is not None
                self.module.language = _shape_of(replace(source, checkpointing=checkpointing or source.checkpointing))
            elif self.module.language is not None:
                texts = texts_of(sample.study for sample in samples)
                self.module.language = self.module.language.build(texts)
            self.module.configure_model()
            if checkpointing and hasattr(self.module.model.encoder, "checkpointing"):
                self.module.model.encoder.checkpointing = True
        self.module.log = lambda *_, **__: None
        self.quantized: list[nn.Linear] = []
        if four_bit:
            self.quantize()

    def quantize(self) -> bool:
        """From now on the language model's frozen matrices count as 4-bit ones; whether that changes anything."""
        language = self.module.model.language
        if self.quantized or language is None:
            return False
        head = language.causal_lm.get_output_embeddings()
        self.quantized = [
            part
            for part in language.modules()
            if isinstance(part, nn.Linear) and part is not head and id(part.weight) not in self.module.learnable
        ]
        return bool(self.quantized)

    def __call__(self, stage: str, size: int) -> Footprint:
        module = self.module
        batch = collate([self.samples[row % len(self.samples)] for row in range(size)])
        with self.fakes as mode:
            module.train()
            module.enter(stage)
            batch = batch.map_tensors(mode.give)
            optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.0)
            language = module.model.language

            def step() -> Tensor:
                windowed = replace(batch, image=self.grid.window_hu(batch.image), augmented=True)
                with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                    loss = module.training_step(windowed, 0)
                if module.unlabelled:
                    carriers = ", ".join(study.study for study in batch.studies)
                    raise ValueError(
                        f"stage {stage!r}: no label of its tasks in {carriers}, and no other study of train has more "
                        "kinds: give the manifest those labels, or leave the task out"
                    )
                return loss

            mode.vocabulary = None if language is None else language.causal_lm.config.vocab_size
            kept, feet = self._kept(batch), []
            names = module.mixture.draw(module.stages[stage].tasks or list(module.tasks), 0)
            names = names if module.mixture.proportions else names[:1]
            for first in names:  # a step of each task that may be drawn
                module.mixture.draw = lambda *_, first=first: sorted(names, key=lambda name: name != first)
                feet.append(rehearse(step, module, optimizer, mode))
            del module.mixture.draw
        shares = [(module.mixture.proportions or {}).get(name, 1) for name in names]
        flops = sum(share * foot.flops for share, foot in zip(shares, feet, strict=True)) / sum(shares)
        # The dearest of them, with the moments of all, in the time of their mean.
        dearest = max(feet, key=lambda foot: foot.total)
        foot = replace(dearest, optimizer=feet[-1].optimizer, flops=flops, kept=kept)
        sizes = [(part.weight.numel(), part.weight.element_size()) for part in self.quantized]
        # Each matrix is unpacked while it is used: one of them at a time stands beside the packed ones.
        unpacked = max((numel * size for numel, size in sizes), default=0)
        saved = int(sum(numel * (size - FOUR_BIT) for numel, size in sizes))
        states = int(foot.optimizer * STATE_SHARE[module.optimizer])
        return replace(foot, weights=foot.weights - saved, activations=foot.activations + unpacked, optimizer=states)

    def _kept(self, batch: Batch) -> int:
        """Bytes of the features that a frozen encoder's stage keeps: of all its studies, or as many as it may."""
        module, data = self.module, self.data
        stage = module.stages[module.stage]
        reads = any(not module.tasks[name].encodes for name in stage.tasks or module.tasks)
        if not reads or not module.may_keep(replace(batch, augmented=data.augment is not None)):
            return 0
        source = data.source if stage.data is None else data.other_sources[stage.data]
        if not _is_there(source):
            return int(module.feature_cache.limit)
        manifest = data.manifest if stage.data is None else data.others[stage.data]
        one = batch.select([0])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            features = module.encode(replace(one, image=self.grid.window_hu(one.image)))
        studies = len(manifest.split("train")[: data.limit])
        return int(min(module.feature_cache.limit, studies * size_of(features)))

    def counts(self) -> dict[str, dict[str, int]]:
        """Parameters by part: all, and those that may learn."""
        found = {}
        for name in PARTS:
            if (part := self.module.part(name)) is not None:
                parameters = list(part.parameters())
                learn = sum(p.numel() for p in parameters if id(p) in self.module.learnable)
                found[name] = {"all": sum(p.numel() for p in parameters), "learn": learn}
        return found


def _shape_of(source: Pretrained) -> LanguageModel:
    """A pretrained language model without its weights: config and tokenizer are all that is read."""
    # Adapters cast their weights, which tensors of a meta device allow and fakes do not.
    with _disable_current_modes(), torch.device("meta"):
        language = source.around(*causal_lm_without_weights(source.name, source.dtype))
    return fakes_of(language)


def _labels(study: Study) -> int:
    """How many kinds of labels a study carries."""
    kinds = ("report", "codes", "labels_known", "outcomes", "mask", "finding_mask", "boxes", "questions")
    return sum(bool(getattr(study, kind)) for kind in kinds)


def _is_there(source: str | Path | Manifest) -> bool:
    return isinstance(source, Manifest) or Path(source).is_file()


def first_samples(data: VolumeData, count: int = 2) -> list[Sample]:
    """Training studies with the most kinds of labels, of those the longest reports; phantoms when the recipe's manifest
    is not there yet.

    Raises:
        ValueError: no study is of the split "train".
    """
    from vol3d import phantom

    source = data.source
    if _is_there(source):
        studies = sorted(data.manifest.split("train"), key=lambda study: (-_labels(study), -len(study.report or "")))
        if not studies:
            raise ValueError(f"no study of the split 'train' in {source}: add a split to its rows")
        return [sample(study, data.grid) for study in studies[:count]]
    logger.warning("%s is not there: phantoms stand in for its studies", source)
    with tempfile.TemporaryDirectory() as folder:
        made = Manifest.read(phantom.write(folder, studies=count, seed=0, shape=(64, 64, 32), prevalence=0.5))
        return [sample(study, data.grid) for study in made]
