"""Watching a run: it stops at the first loss that is no number, and tells of gradients that jump."""

from __future__ import annotations

import logging
import math
from collections import deque
from statistics import median
from typing import Any

import lightning
import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class Watch(lightning.Callback):
    """Stops before a NaN or infinite loss reaches the weights, and logs gradient norms and their spikes.

    Args:
        spike: a gradient norm so many times the median of the last `window` steps is told with the batch's studies.
        window: steps.

    Raises:
        ValueError: the loss is not a finite number (step, stage, studies and remedies are named).
    """

    def __init__(self, spike: float | int = 10, window: int = 100) -> None:
        self.spike, self.norms = spike, deque[float](maxlen=window)
        self.studies: list[str] = []

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.studies = [study.study for study in batch.studies]

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: Any, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is {loss.item()} at step {trainer.global_step} of stage {pl_module.stage!r}, studies "
                f"{self.studies}: look at these studies (`vol3d doctor`), lower learning_rate, or set "
                "trainer.gradient_clip_val; no weight was changed by this step"
            )

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        total = torch.nn.utils.get_total_norm(gradients)
        norm = float(total.full_tensor() if hasattr(total, "full_tensor") else total)  # FSDP2's lies in pieces
        pl_module.log("train/grad_norm", norm)
        usual = median(self.norms) if len(self.norms) >= 10 else math.inf
        if norm > self.spike * usual:
            logger.warning(
                "step %d: gradient norm %.3g, %.0f times the usual %.3g; last studies: %s",
                *(trainer.global_step, norm, norm / usual, usual, ", ".join(self.studies)),
            )
        self.norms.append(norm)
