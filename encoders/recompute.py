"""Activation checkpointing: one switch for every encoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from vol3d.model.interfaces import Encoder

_ATEN = torch.ops.aten


def _keep_products(context: Any, operation: Any, *inputs: Any, **options: Any) -> CheckpointPolicy:
    """Keep what a convolution gives, and a matrix product no wider than what it read: dear to compute, small to hold.
    Norms, activations and products that widen are computed again."""
    kept = operation is _ATEN.convolution.default
    if operation is _ATEN.mm.default:
        kept = inputs[1].shape[1] <= inputs[1].shape[0]
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


KEEP_PRODUCTS = partial(create_selective_checkpoint_contexts, _keep_products)


class Recomputing(Encoder):
    """An encoder that may compute its parts a second time in the backward pass instead of keeping what they saw.

    Setting `checkpointing` changes memory and time, never a result.
    """

    _checkpointing = False

    @property
    def checkpointing(self) -> bool:
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self._checkpointing = value
        self.pass_on(value)

    def pass_on(self, value: bool) -> None:
        """Switch inner modules that checkpoint by themselves."""

    def run(self, part: Callable[..., Any], *inputs: Any, keep: Callable[..., Any] | None = None) -> Any:
        """What `part` gives, kept or to be computed again, all of it or all but what `keep` holds on to."""
        if self.checkpointing and self.training:
            options = {} if keep is None else {"context_fn": keep}
            return checkpoint(part, *inputs, use_reentrant=False, **options)
        return part(*inputs)
