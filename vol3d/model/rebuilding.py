"""Cheap results that the backward pass makes again instead of keeping them: norms, activations, gates."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

_Layout = tuple[torch.Size, tuple[int, ...]]


def rebuilt(cheap: Callable[..., Tensor], *inputs: Tensor, into: Callable[[Tensor], Tensor]) -> Tensor:
    """`into(cheap(*inputs))`, without holding what `cheap` gives: the backward pass makes it again where `into` asks.

    Worth it where `cheap` reads what is held anyway and `into` is a matrix product: its weights' gradient needs its
    input, which is as large as all else a block holds. Values and gradients are the same to the last bit. Inside
    checkpointing or offloading, which decide by themselves what is held, nothing is changed.

    Args:
        cheap: elementwise or a norm, without chance in it. into: a linear layer, or what peft makes of one.

    Source: selective recomputation (Korthikanti et al. 2022, arXiv:2205.05198) of norms and activations; here by
    PyTorch's hooks for saved tensors.
    """
    if not _may_rebuild():
        return into(cheap(*inputs))
    kind = inputs[0].device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if casts else None

    def make(*given: Tensor) -> Tensor:
        with torch.autocast(kind, dtype) if casts else nullcontext():  # there is none around the backward pass
            result = cheap(*given)
        # As the product would cast its input; cast here, it holds this tensor and no copy.
        return result.to(dtype) if casts and result.dtype == torch.float32 else result

    if isinstance(cheap, nn.GELU):
        return _lean(_Gelu.apply(make, cheap.approximate, *inputs), make, into)
    return _lean(_Made.apply(make(*inputs), *inputs), make, into)


def _may_rebuild() -> bool:
    """Not without gradients, not for a compiler, which chooses by itself, and not inside other hooks for saved tensors
    (checkpointing's): hooks do not nest, and what ours pass by would be held."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def _lean(result: Tensor, make: Callable[..., Tensor], into: Callable[[Tensor], Tensor]) -> Tensor:
    if not result.requires_grad:
        return into(result)
    made, storage, size = result.grad_fn, StorageWeakRef(result.untyped_storage()), result.numel()

    def pack(tensor: Tensor) -> Tensor | _Layout:
        same = tensor.numel() == size and StorageWeakRef(tensor.untyped_storage()) == storage
        return (tensor.shape, tensor.stride()) if same else tensor

    def unpack(held: Tensor | _Layout) -> Tensor:
        if isinstance(held, Tensor):
            return held
        if made.again is None:
            with torch.no_grad():
                made.again = make(*made.saved_tensors)
        return made.again.as_strided(*held)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return into(result)


class _Made(torch.autograd.Function):
    """Hands a result on and holds what it was made of."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        # Made by the first reader in the backward pass and kept for the others.
        ctx.again, ctx.count = None, len(inputs)
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ctx.again = None
        return (grad, *[None] * ctx.count)


class _Gelu(torch.autograd.Function):
    """The same for GELU, whose gradient is written where the result made again lies. On a CPU, where each new piece of
    memory costs as much as filling it, a block's backward pass is some 4 % faster."""

    @staticmethod
    def forward(ctx: Any, make: Callable[[Tensor], Tensor], approximate: str, given: Tensor) -> Tensor:
        ctx.save_for_backward(given)
        ctx.again, ctx.approximate = None, approximate
        return make(given)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        (given,), again, ctx.again = ctx.saved_tensors, ctx.again, None
        slope, grad = torch.ops.aten.gelu_backward, grad.to(given.dtype)
        # Nobody read it, it was cast, or the gradient wants a gradient itself: written apart.
        if again is None or again.dtype != given.dtype or torch.is_grad_enabled():
            return None, None, slope(grad, given, approximate=ctx.approximate)
        return None, None, slope.grad_input(grad, given, approximate=ctx.approximate, grad_input=again)


def rebuild_gates(model: nn.Module) -> int:
    """Let the gated MLPs of a transformers model hold gate and up alone for the backward pass, not the opened gate nor
    the product: half of what such an MLP holds, for an activation computed twice more.

    They are known by how their forward is written, which Llama, Qwen, Mistral, Gemma, SmolLM and a hundred others have
    word for word, and Phi and GLM in a form of their own. Any other is left as it is.

    Returns:
        How many MLPs were changed.
    """
    changed = 0
    for module in model.modules():
        if forward := _GATED.get(_body(type(module))):
            module.forward = MethodType(forward, module)
            changed += 1
    return changed


@cache
def _body(kind: type[nn.Module]) -> str:
    """What a module's forward does, on one line."""
    try:
        written = inspect.getsource(kind.forward)
    except (OSError, TypeError):  # compiled, or typed into a shell
        return ""
    return re.sub(r".*?def forward\([^)]*\)[^:]*: ", "", " ".join(written.split()), count=1)


def _gated(self: Any, x: Tensor) -> Tensor:
    return _opened(self.act_fn, self.gate_proj(x), self.up_proj(x), self.down_proj)


def _gated_in_one(self: Any, x: Tensor) -> Tensor:
    gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
    return _opened(self.activation_fn, gate, up, self.down_proj)


def _opened(act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor, down: nn.Module) -> Tensor:
    def product(gate: Tensor, up: Tensor) -> Tensor:
        if not _may_rebuild():
            return act(gate) * up
        return _lean(_Made.apply(act(gate), gate), act, lambda opened: opened * up)

    return rebuilt(product, gate, up, into=down)


_GATED = {
    "down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) return down_proj": _gated,
    "return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))": _gated,
    "up_states = self.gate_up_proj(hidden_states) gate, up_states = up_states.chunk(2, dim=-1) "
    "up_states = up_states * self.activation_fn(gate) return self.down_proj(up_states)": _gated_in_one,
}
