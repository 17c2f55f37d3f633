"""A training step run without memory or arithmetic: on tensors that have only shapes, so that its peak is known
before a GPU is rented."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary, WeakIdRef

aten = torch.ops.aten
_INDEXES = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
PART = 50
"""Of what a mask selects, one in so many is taken to be chosen: what a shape cannot tell has to be assumed."""


@dataclass(frozen=True)
class Footprint:
    """Bytes by part at the moment of a step's peak, the largest table of logits (a part of the activations, not
    always at the peak), the step's floating point operations, and the bytes that steps before it have left."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    flops: float
    kept: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.kept


def _keeps(dtype: torch.dtype) -> bool:
    """Whether numbers of this type stay real: whole ones, truth values, and geometry, which is in float64."""
    return not dtype.is_floating_point or dtype == torch.float64


def _reads_values(func: Any) -> bool:
    """Whether what comes out, or how much of it, depends on values (item, nonzero, unique)."""
    tags = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
    return func not in _INDEXES and any(tag in func.tags for tag in tags)


class Whole(TorchDispatchMode):
    """Whole numbers, truth values and geometry stay real beside their valueless doubles: token ids, labels, masks and
    affines decide what a step does, and cost little. Where a number is read that depends on other fractions, it is
    taken to be 1, and a mask made of them to select one in `PART`.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode, self.real = mode, WeakIdKeyDictionary(ref_type=WeakIdRef)
        self.vocabulary: int | None = None
        self.logits = 0

    def give(self, value: Tensor) -> Tensor:
        """A real tensor → its double, which remembers it when it is of a type that stays real."""
        with _disable_current_modes():
            double = self.mode.from_tensor(value)
        if _keeps(value.dtype):
            self.real[double] = value
        return double

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = self._known(func, args, kwargs)
        if _reads_values(func):
            return self._assume(func, args) if known is None else tree_map_only(Tensor, self.give, known)
        if func in _INDEXES:
            args = (args[0], self._numbers(args[1]), *args[2:])
        out = func(*args, **kwargs)
        if not func.is_view and isinstance(out, Tensor) and out.shape[-1:] == (self.vocabulary,):
            self.logits = max(self.logits, out.numel() * out.element_size() * out.is_floating_point())
        if known is not None and tree_flatten(out)[1] == tree_flatten(known)[1]:
            for double, value in zip(tree_flatten(out)[0], tree_flatten(known)[0], strict=True):
                if isinstance(double, FakeTensor) and _keeps(value.dtype):
                    self.real[double] = value
        return out

    def _known(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The real result, where all that goes in is real, and so is what comes out."""
        flat, spec = tree_flatten((args, kwargs))
        tensors = [value for value in flat if isinstance(value, Tensor)]
        if not all(tensor in self.real for tensor in tensors if isinstance(tensor, FakeTensor)):
            return None
        if not all(_keeps(dtype) for dtype in (*(t.dtype for t in tensors), kwargs.get("dtype") or torch.long)):
            return None
        if not tensors and "dtype" not in kwargs and func not in (aten.arange.default, aten.arange.start):
            return None  # a new tensor of fractions
        real_args, real_kwargs = tree_unflatten(
            [self.real.get(value, value) if isinstance(value, FakeTensor) else value for value in flat], spec
        )
        with _disable_current_modes():
            return func(*real_args, **real_kwargs)

    def _assume(self, func: Any, args: tuple[Any, ...]) -> Any:
        """What reading values gives where there are none."""
        if func is aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1
        count = max(1, args[0].numel() // PART)
        if func is aten.nonzero.default:
            return args[0].new_zeros((count, args[0].ndim), dtype=torch.long)
        return args[0].new_empty((count,))

    def _numbers(self, indexes: list[Tensor | None]) -> list[Tensor | None]:
        """Masks used as indexes, as the numbers they select: fakes know no masks."""
        numbers: list[Tensor | None] = []
        for index in indexes:
            if index is None or index.dtype != torch.bool:
                numbers.append(index)
            elif index in self.real:
                with _disable_current_modes():
                    chosen = self.real[index].nonzero().unbind(1)
                numbers += [self.give(column) for column in chosen]
            else:
                chosen = max(1, index.numel() // PART)
                numbers += [index.new_zeros((chosen,), dtype=torch.long) for _ in range(index.ndim)]
        return numbers


class Fakes:
    """Tensors made inside have a shape and a type but no memory. May be entered again: they live on in between."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.whole = Whole(self.mode)

    def __enter__(self) -> Whole:
        self.mode.__enter__()
        return self.whole.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.whole.__exit__(*raised)
        self.mode.__exit__(*raised)


def fakes_of(module: Any) -> Any:
    """A module of meta tensors with its parameters and buffers made fakes on the CPU (call it inside `Fakes()`)."""
    made: dict[int, Tensor] = {}

    def double(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            value = torch.empty(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor
            if isinstance(tensor, nn.Parameter):
                value = nn.Parameter(value, requires_grad=tensor.requires_grad)
            made[id(tensor)] = value
        return made[id(tensor)]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            tensors.update({name: double(tensor) for name, tensor in tensors.items() if tensor is not None})
    return module


class Held(TorchDispatchMode):
    """Counts the bytes of all storages alive, and what they were made of at the highest moment."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.live = self.gradients = self.peak = self.peak_gradients = 0
        self.known: set[int] = set()
        self.weights = sum(self._count(tensor) for tensor in (*module.parameters(), *module.buffers()))
        states = (value for state in optimizer.state.values() for value in state.values())
        self.states = sum(self._count(value) for value in states if isinstance(value, Tensor))
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(self._gradient)
            for parameter in module.parameters()
            if parameter.requires_grad
        ]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_flatten((args, out))[0]:
            if isinstance(value, Tensor):
                self._count(value)
        if self.live > self.peak:
            self.peak, self.peak_gradients = self.live, self.gradients
        return out

    def _count(self, tensor: Tensor) -> int:
        """Bytes of the tensor's storage, 0 when it is counted already."""
        storage = tensor.untyped_storage()
        if storage._cdata in self.known:
            return 0
        size = storage.nbytes()
        self.known.add(storage._cdata)
        self.live += size
        weakref.finalize(storage, self._forget, storage._cdata, size)
        return size

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size

    def _gradient(self, parameter: nn.Parameter) -> None:
        self.gradients += parameter.grad.untyped_storage().nbytes()


def rehearse(
    step: Callable[[], Tensor], module: nn.Module, optimizer: torch.optim.Optimizer, mode: Whole | None = None
) -> Footprint:
    """Peak of the second of two steps (loss, backward, update), when the optimizer's state is there.

    Args:
        step: computes the loss. Called inside `Fakes()`, with everything it needs built there too, it costs neither
            memory nor arithmetic; outside it is the real step that is measured.
        module: holds all parameters that lie on the device.
        mode: what entering `Fakes()` gave, with `vocabulary` set where logits are to be told apart.
    """

    def whole() -> None:
        step().backward()
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        whole()
    if mode is not None:
        mode.logits = 0
    with Held(module, optimizer) as held:
        whole()
    for hook in held.hooks:
        hook.remove()
    return Footprint(
        weights=held.weights,
        gradients=held.peak_gradients,
        optimizer=held.states,
        activations=held.peak - held.weights - held.states - held.peak_gradients,
        logits=0 if mode is None else mode.logits,
        flops=float(counter.get_total_flops()),
    )
