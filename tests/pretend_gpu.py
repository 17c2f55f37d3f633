"""Training steps and predictions on a device that does not exist: shapes and places without numbers.

    python tests/pretend_gpu.py cpu/report.yaml cpu/vqa.yaml     # recipes' stages and tasks
    python tests/pretend_gpu.py encoders                         # each encoder, forward and backward

A tensor left on the CPU that meets one of the device raises, as it would on a GPU. Prints one JSON object: argument →
what ran → what went wrong, or null. A process of its own, because a device is registered for as long as one lives.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from vol3d.data.batch import Batch, collate
from vol3d.plan import _Rehearsal, first_samples
from vol3d.training import rehearsal
from vol3d.training.recipe import RecipeParts


class Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("pretend", backend_module=Backend())
DEVICE = torch.device("pretend:0")


def there(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device == DEVICE


class Whole(rehearsal.Whole):
    """As the planner has it, with doubles that lie where their tensor would."""

    def give(self, value: Tensor, device: torch.device = DEVICE) -> Tensor:
        double = super().give(value)
        if device != DEVICE:
            return double
        with _disable_current_modes(), self.mode:
            moved = torch.ops.aten._to_copy.default(double, device=DEVICE)
        if rehearsal._keeps(value.dtype):
            self.real[moved] = value
        return moved

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known = self._known(func, args, kwargs or {}) if rehearsal._reads_values(func) else None
        if known is None:
            return super().__torch_dispatch__(func, types, args, kwargs)
        device = next(leaf.device for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
        return tree_map_only(Tensor, lambda value: self.give(value, device), known)

    def _known(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        here = {"device": torch.device("cpu")} if "device" in kwargs else {}  # the real ones never leave
        return super()._known(func, args, kwargs | here)


class Numbers(TorchFunctionMode):
    """What a GPU's own code does with numbers from Python, and Python with numbers from there."""

    def __init__(self, whole: Whole) -> None:
        super().__init__()
        self.whole = whole

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == DEVICE.type:
            return self._sent(func(*args, **kwargs | {"device": "cpu"}))
        if func is Tensor.new_tensor and there(args[0]):
            return self._sent(torch.tensor(args[1], dtype=kwargs.get("dtype") or args[0].dtype))
        if func in (Tensor.__getitem__, Tensor.__setitem__) and there(args[0]):
            key = args[1] if isinstance(args[1], tuple) else (args[1],)
            key = tuple(torch.tensor(part) if isinstance(part, list) else part for part in key)
            return func(args[0], key, *args[2:])
        if func in (Tensor.tolist, Tensor.numpy) and isinstance(args[0], FakeTensor):
            if func is Tensor.numpy and there(args[0]):
                raise TypeError("numpy reads the CPU's memory alone: a .cpu() is missing")
            real = self.whole.real.get(args[0])
            value = np.ones(args[0].shape, np.float32) if real is None else real.numpy()
            return value if func is Tensor.numpy else value.tolist()
        return func(*args, **kwargs)

    @staticmethod
    def _sent(made: Tensor) -> Tensor:
        if isinstance(made, FakeTensor):
            made.constant = None  # which would be computed with, on a device that cannot
        return made.to(DEVICE)


def move(module: nn.Module, whole: Whole) -> None:
    """Parameters and buffers to the device; tensors that a module keeps otherwise stay where they are."""
    made: dict[int, Tensor] = {}

    def moved(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            real = whole.real.get(tensor) if isinstance(tensor, FakeTensor) else tensor.detach()
            value = torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE) if real is None else whole.give(real)
            learns = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(value, requires_grad=tensor.requires_grad) if learns else value
        return made[id(tensor)]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            tensors.update({name: moved(tensor) for name, tensor in tensors.items() if tensor is not None})


def recipe_works(recipe: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What a recipe's model does, by name: a step of each stage, and each task's prediction."""
    samples = first_samples(RecipeParts(["--config", recipe]).datamodule)
    asked = _Rehearsal(["--config", recipe], samples)
    module, both = asked.module, collate(samples)

    def batch() -> Batch:
        on_device = both.map_tensors(whole.give)
        return replace(on_device, image=asked.grid.window_hu(on_device.image), augmented=True)

    def step(stage: str) -> None:
        module.train()
        module.enter(stage)
        module.training_step(batch(), 0).backward()

    def predict(task: Any) -> None:
        module.eval()
        seen = batch()
        with torch.no_grad():
            features = module.model.encode(seen.image, seen.affine)
            if "visual" in task.uses:
                features.visual = module.model.project(features)
            task.predict(module.model, features, seen)

    with asked.fakes as whole, Numbers(whole):
        move(module, whole)
        module.learnable = {id(parameter) for parameter in module.parameters()}
        for part in module.modules():
            if hasattr(part, "max_new_tokens"):
                part.max_new_tokens = 3  # each goes the same way
        for stage in module.stages:
            yield f"train {stage}", partial(step, stage)
        for name, task in module.tasks.items():
            yield f"predict {name}", partial(predict, task)
        yield "a stray tensor", lambda: next(module.parameters()) + torch.zeros(1)


def encoder_works() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Forward and backward of each encoder that needs no package beside."""
    from test_encoders_contract import NEEDS, VARIANTS, everything, image

    import vol3d

    def both_ways(encoder: Any, images: Tensor, affine: Tensor) -> None:
        sum(part.float().square().mean() for part in everything(encoder, encoder(images, affine))).backward()

    for name in sorted(set(VARIANTS) - set(NEEDS)):
        encoder = vol3d.encoders.create(name, **VARIANTS[name][0])
        given = image(name), torch.eye(4, dtype=torch.float64).expand(2, 4, 4).clone()
        with rehearsal.Fakes() as whole, Numbers(whole):
            move(encoder, whole)
            for checkpointing in (False, True):
                encoder.checkpointing = checkpointing
                how = ", checkpointing" if checkpointing else ""
                yield name + how, partial(both_ways, encoder, *map(whole.give, given))


def main() -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rehearsal.Whole = Whole
    found: dict[str, dict[str, str | None]] = {}
    for argument in sys.argv[1:]:
        said = found[argument] = {}
        for name, work in encoder_works() if argument == "encoders" else recipe_works(argument):
            try:
                work()
                said[name] = None
            except Exception as error:
                said[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    # Autograd's thread of the device that pretends to be there may still run: taken down with the process, not before
    # it, where C++ ends a process ("terminate called without an active exception").
    os._exit(0)


if __name__ == "__main__":
    main()
