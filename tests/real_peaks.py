"""What a recipe's stages really take on a CPU, to be held against the plan (also used by benchmarks/planner.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.profiler import profile

from vol3d.data.batch import Sample, collate
from vol3d.training.recipe import RecipeParts


def peaks(recipe: Sequence[str], samples: list[Sample]) -> dict[str, int]:
    """Stage → bytes at the highest moment of a real step at the recipe's own batch size, weights and state included.

    Where a task throws a coin for a second pass (`torch.rand(()) < share`), it falls for it: that step is the peak.
    """
    parts = RecipeParts(recipe, here=False)
    module, grid = parts.model, parts.datamodule.grid
    if module.language is not None:
        module.language = module.language.build([sample.study.report for sample in samples])
    module.configure_model()
    module.log = lambda *_, **__: None
    batch = collate([samples[row % len(samples)] for row in range(parts.datamodule.batch_size)])
    rand, bf16, found = torch.rand, parts.precision == "bf16-mixed", {}

    def coins(*size: Any, **options: Any) -> Tensor:
        return torch.zeros(()) if size == ((),) else rand(*size, **options)

    for stage in module.stages:
        module.train()
        module.enter(stage)
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.0)

        def step() -> Tensor:
            windowed = replace(batch, image=grid.window_hu(batch.image), augmented=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                return module.training_step(windowed, 0)

        with patch("torch.rand", coins):
            found[stage] = peak(step, module, optimizer)
    return found


def peak(step: Callable[[], Tensor], module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Highest bytes of a real step by the profiler's record of every allocation, on top of weights and state."""

    def whole() -> None:
        step().backward()
        optimizer.step()
        optimizer.zero_grad()

    whole()
    held = [*module.parameters(), *module.buffers()]
    held += [value for state in optimizer.state.values() for value in state.values()]
    with profile(profile_memory=True) as record:
        whole()
    live = highest = 0
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest + sum(tensor.numel() * tensor.element_size() for tensor in held)
