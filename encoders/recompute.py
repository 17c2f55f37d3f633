"""Activation checkpointing: one switch for every encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
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


def counting_once(part: nn.Module) -> Callable[[], tuple[AbstractContextManager, AbstractContextManager]] | None:
    """A `keep` for `Recomputing.run` under which a batch that `part` sees twice counts once in its norms' running
    statistics; None for a part without such norms."""
    norms = [module for module in part.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    return (lambda: (nullcontext(), _set_aside(norms))) if norms else None


@contextmanager
def _set_aside(norms: list[_NormBase]) -> Iterator[None]:
    """Norms that count into copies."""
    own = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, own, strict=True):
        norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items() if buffer is not None})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            norm._buffers.update(buffers)


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
        """What `part` gives, kept or to be computed again: all of it, or as `keep` (torch's `context_fn`) has it."""
        if self.checkpointing and self.training:
            options = {} if keep is None else {"context_fn": keep}
            return checkpoint(part, *inputs, use_reentrant=False, **options)
        return part(*inputs)
