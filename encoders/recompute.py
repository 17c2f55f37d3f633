"""Activation checkpointing: one switch for every encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint

from vol3d.model.interfaces import Encoder


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

    def run(self, part: Callable[..., Any], *inputs: Any) -> Any:
        """What `part` gives, kept or to be computed again."""
        if self.checkpointing and self.training:
            return checkpoint(part, *inputs, use_reentrant=False)
        return part(*inputs)
