"""Next-token cross-entropy that never holds (positions, vocabulary): logits come a chunk at a time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Method = Literal["chunked", "liger"]


def linear_cross_entropy(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    method: Method = "chunked",
    chunk_mib: float = 64.0,
) -> Tensor:
    """Mean cross-entropy of `head(hidden)` against `targets`.

    A plain linear head computes its gradients chunk by chunk in the forward pass; any other head, or one whose
    logits are scaled or capped, recomputes each chunk in the backward pass.

    Args:
        transform: what the model does to its logits (a cap, a scale); None for nothing.
        method: "liger" for liger-kernel's fused GPU kernel.
        chunk_mib: memory of one chunk's fp32 logits.

    Shape:
        hidden (positions, width), targets (positions,) → scalar.

    Raises:
        ValueError: liger on a CPU. ImportError: liger-kernel is not installed.

    Source: gradients in the forward pass as in Liger's fused linear cross-entropy (arXiv:2410.10989), in plain torch.
    """
    if method == "liger":
        return _liger(hidden, head, targets, transform)
    rows = max(1, int(chunk_mib * 2**20 / 4 / max(1, _width(head))))
    if type(head) is nn.Linear and transform is None and not is_sharded(head.weight):
        return _LinearCrossEntropy.apply(hidden, head.weight, head.bias, targets, rows)

    def chunk_loss(part: Tensor, wanted: Tensor) -> Tensor:
        logits = head(part)
        logits = logits if transform is None else transform(logits)
        return F.cross_entropy(logits.float(), wanted, reduction="sum")

    total = hidden.new_zeros((), dtype=torch.float32)
    chunks = list(zip(hidden.split(rows), targets.split(rows), strict=True))
    if any(is_sharded(parameter) for parameter in head.parameters()):
        # Each chunk gathers the weight, so all processes take as many: the rest of them are empty.
        chunks += [(hidden[:0], targets[:0])] * (most_of_ranks(len(chunks), hidden.device) - len(chunks))
    for part, wanted in chunks:
        if torch.is_grad_enabled():
            total = total + checkpoint(chunk_loss, part, wanted, use_reentrant=False)
        else:
            total = total + chunk_loss(part, wanted)
    return total / max(1, len(targets))


def is_sharded(parameter: Tensor) -> bool:
    """Whether DeepSpeed (ZeRO-3) or FSDP hold a part of it here, so that only its module's own forward may use it."""
    return hasattr(parameter, "ds_id") or type(parameter.data).__name__ == "DTensor"


def most_of_ranks(count: int, device: torch.device) -> int:
    """The highest count of any process."""
    if not (dist.is_available() and dist.is_initialized()):
        return count
    highest = torch.tensor([count], device=device)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return int(highest)


def _width(head: nn.Module) -> int:
    return int(getattr(head, "out_features", 0) or head.weight.shape[0])


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients of a linear head, chunk by chunk; what is kept is as large as hidden (and the weight)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int) -> Tensor:
        kind = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else None
        work, matrix = hidden.to(kind or hidden.dtype), weight.to(kind or weight.dtype)
        wanted = ctx.needs_input_grad
        grads: list[Tensor | None] = [
            torch.empty_like(hidden) if wanted[0] else None,
            torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None,
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wanted[2] else None,
        ]
        total, count = hidden.new_zeros((), dtype=torch.float32), max(1, len(targets))
        # A position's share of the mean is taken at once, but float16 flushes such small numbers: it takes it last.
        share = 1 if work.dtype == torch.float16 else count
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), rows):
                part = slice(start, start + rows)
                logits = work[part] @ matrix.T
                logits = (logits if bias is None else logits + bias.to(logits.dtype)).float()
                top = logits.amax(dim=-1, keepdim=True)
                total -= (logits.gather(1, targets[part, None]) - top).sum()
                # In place, and one exponential: the chunk turns from logits into the gradient.
                logits.sub_(top).exp_()
                mass = logits.sum(dim=-1, keepdim=True)
                total += mass.log().sum()
                if not any(wanted[:3]):
                    continue
                logits.div_(mass * share)
                logits.scatter_add_(1, targets[part, None], logits.new_full((len(logits), 1), -1.0 / share))
                _LinearCrossEntropy._add(grads, part, logits, work[part], matrix)
        ctx.save_for_backward(*grads)
        ctx.left = count / share
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total / count

    @staticmethod
    def _add(grads: list[Tensor | None], part: slice, logits: Tensor, work: Tensor, matrix: Tensor) -> None:
        given = logits.to(work.dtype)
        if grads[0] is not None:
            grads[0][part] = (given @ matrix).to(grads[0].dtype)
        if grads[1] is not None and work.dtype == torch.float32:
            grads[1].addmm_(given.T, work)
        elif grads[1] is not None:
            grads[1] += given.T @ work
        if grads[2] is not None:
            grads[2] += logits.sum(0)

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if grad is None else (grad * (given / ctx.left).to(grad.dtype)).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None)


def _liger(hidden: Tensor, head: nn.Module, targets: Tensor, transform: Callable[[Tensor], Tensor] | None) -> Tensor:
    check_liger(hidden.device)
    if transform is not None or not isinstance(head, nn.Linear):
        raise ValueError("liger's cross-entropy takes a plain linear head without scaled logits: use method 'chunked'")
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(head.weight, hidden, targets, head.bias)


def check_liger(device: torch.device) -> None:
    """Refuse liger where it cannot run.

    Raises:
        ValueError: not on a GPU. ImportError: the package is absent.
    """
    if device.type != "cuda":
        raise ValueError(
            f"liger-kernel runs on a GPU, the model is on {device.type}: use cross_entropy 'chunked', which holds as "
            "little memory"
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise ImportError("cross_entropy 'liger' needs the package liger-kernel: pip install 'vol3d[liger]'")
