"""Contrastive losses for large batches on small machines: exact over all ranks, in chunks of rows and of towers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint, get_device_states, set_device_states


def infonce(
    volume: Tensor, text: Tensor, scale: Tensor, *, same: Sequence[Hashable] | None = None, chunk: int | None = None
) -> Tensor:
    """Symmetric InfoNCE of the pairs of all ranks.

    The loss is the mean over both directions of the cross-entropy between softmax(scale · cosine) and the target: all
    of it on the pair's own partner, shared equally with every other item that says the same.

    Args:
        volume, text: unit vectors of this rank's pairs; ranks may differ in how many they have, down to none.
        scale: 1 / temperature.
        same: what each pair says (a text, a set of findings); pairs that say the same are no negatives of each other.
        chunk: rows of the similarity table held at once; None holds (pairs, pairs of all ranks). Loss and gradients
            do not depend on it.

    Shape:
        (pairs, dim), (pairs, dim) → ()

    Source: CLIP (arXiv:2103.00020); targets shared among equal texts as in fVLM (arXiv:2501.14548), which shares them
    among normal organs too (give `same` the set of findings).
    """
    own, every = _numbers(same, volume)

    def total(pairs: Tensor, everyone: Tensor, scale: Tensor) -> Tensor:
        every_volume, every_text = everyone.chunk(2, dim=1)

        def rows(pairs: Tensor, own: Tensor) -> Tensor:
            volume, text = pairs.chunk(2, dim=1)
            target = own[:, None] == every[None, :]
            target = target / target.sum(dim=1, keepdim=True)
            return sum(
                F.cross_entropy(scale * query @ items.T, target, reduction="sum") / 2
                for query, items in ((volume, every_text), (text, every_volume))
            )

        return _by_rows(rows, chunk, pairs, own)

    pairs = torch.cat([volume.float(), text.float()], dim=1)
    return _over_ranks(total, pairs, pairs, scale)


def siglip(
    volume: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    same: Sequence[Hashable] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Sigmoid loss of every pair of volume and text over all ranks: −Σ log σ(±(scale · cosine + bias)) / pairs.

    A volume and a text are a positive pair when they belong together or say the same (`same`).
    Arguments are those of `infonce`.

    Source: SigLIP (arXiv:2303.15343).
    """
    own, every = _numbers(same, volume)

    def total(volume: Tensor, every_text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        def rows(volume: Tensor, own: Tensor) -> Tensor:
            sign = torch.where(own[:, None] == every[None, :], 1.0, -1.0)
            return -F.logsigmoid(sign * (scale * volume @ every_text.T + bias)).sum()

        return _by_rows(rows, chunk, volume, own)

    return _over_ranks(total, volume.float(), text.float(), scale, bias)


def gather(tensor: Tensor) -> Tensor:
    """The rows of every rank, in the order of the ranks, without a gradient."""
    if _ranks() == 1:
        return tensor.detach()
    counts = _counts(tensor)
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _over_ranks(total: Callable[..., Tensor], own: Tensor, shared: Tensor, *learnt: Tensor) -> Tensor:
    """What this rank returns so that the mean over ranks (which DDP takes) is Σ over ranks of `total` / all pairs.

    Args:
        total: (own, `shared` of every rank, *learnt) → the sum over this rank's pairs.
        own, shared: (pairs, …) of this rank. learnt: what every rank has alike, such as the scale.
    """
    if _ranks() == 1:
        return total(own, shared, *learnt) * (1 / max(1, len(own)))
    if not torch.is_grad_enabled():
        every = gather(shared)
        return total(own, every, *learnt) * (_ranks() / max(1, len(every)))
    return _OverRanks.apply(total, own, shared, *learnt)


class _OverRanks(torch.autograd.Function):
    """`_over_ranks` whose gradient is ready when the forward pass ends, what the other ranks say of `shared` with it.

    So the backward pass says nothing to other ranks. In a backward pass messages leave in the order in which a rank's
    own graph runs; a rank without a label for another task runs another graph, and its message would meet DDP's.
    """

    @staticmethod
    def forward(ctx: Any, total: Callable[..., Tensor], own: Tensor, shared: Tensor, *learnt: Tensor) -> Tensor:
        first = sum(_counts(shared)[: dist.get_rank()])
        inputs = [tensor.detach().requires_grad_() for tensor in (own, gather(shared), *learnt)]
        with torch.enable_grad():
            value = total(*inputs) * (_ranks() / max(1, len(inputs[1])))
            gradients = torch.autograd.grad(value, inputs, materialize_grads=True)
        every = gradients[1].contiguous()
        dist.all_reduce(every)
        ctx.save_for_backward(gradients[0], every[first : first + len(shared)], *gradients[2:])
        return value.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(grad * gradient for gradient in ctx.saved_tensors)


def place() -> tuple[int, int]:
    """Rank and number of ranks."""
    joined = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)


def _ranks() -> int:
    return place()[1]


def _counts(tensor: Tensor) -> list[int]:
    counts = [torch.zeros(1, dtype=torch.long, device=tensor.device) for _ in range(_ranks())]
    dist.all_gather(counts, torch.tensor([len(tensor)], device=tensor.device))
    return [int(count) for count in counts]


def _numbers(same: Sequence[Hashable] | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """A number for what each pair of this rank says, and for those of every rank; equal ones have equal numbers."""
    if same is not None and len(same) != len(like):
        raise ValueError(f"{len(like)} pairs, {len(same)} entries in `same`: give one a pair")
    if _ranks() == 1:
        known: dict[Hashable, int] = {}
        said = range(len(like)) if same is None else same
        own = torch.tensor([known.setdefault(item, len(known)) for item in said], device=like.device, dtype=torch.long)
        return own, own
    everyone: list[Any] = [None] * _ranks()
    # Python's hash differs from process to process, so the things themselves travel.
    dist.all_gather_object(everyone, list(range(len(like))) if same is None else list(same))
    known, rows = {}, []
    for rank, items in enumerate(everyone):
        keys = [(rank, item) for item in items] if same is None else items
        rows.append([known.setdefault(key, len(known)) for key in keys])
    flat = [number for row in rows for number in row]
    return (
        torch.tensor(rows[dist.get_rank()], device=like.device, dtype=torch.long),
        torch.tensor(flat, device=like.device, dtype=torch.long),
    )


def _by_rows(function: Callable[..., Tensor], chunk: int | None, *tensors: Tensor) -> Tensor:
    """Sum of `function` over chunks of rows; what a chunk holds is computed again in the backward pass."""
    if chunk is None or len(tensors[0]) <= chunk:
        return function(*tensors)
    parts = zip(*(tensor.split(chunk) for tensor in tensors), strict=True)
    return torch.stack([checkpoint(function, *part, use_reentrant=False) for part in parts]).sum()


def any_rank(count: int, device: torch.device) -> bool:
    """Whether any rank counts something: all must then compute the loss, because its gathering waits for each."""
    if _ranks() == 1:
        return count > 0
    total = torch.tensor([int(count)], device=device)
    dist.all_reduce(total)
    return int(total) > 0


class _AtMost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(value > limit)
        return value.clamp(max=limit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (beyond,) = ctx.saved_tensors
        return torch.where(beyond, grad.clamp(min=0), grad), None


def at_most(value: Tensor, limit: float) -> Tensor:
    """`value`, or `limit` where that is less; descent may still lower what lies beyond it, and raises it no further.

    A plain clamp has no gradient beyond its limit, so nothing would bring a value back; a clamp of the parameter itself
    reaches only a gathered copy where weights are divided (FSDP2, ZeRO).
    """
    return _AtMost.apply(value, limit)


# --- towers in chunks ---------------------------------------------------------------------------------------


def in_chunks(tower: Callable[[Any], Tensor], inputs: Any, size: int | None) -> Tensor:
    """`tower(inputs)` with the activations of `size` inputs held at once.

    Each chunk runs under checkpointing: its activations are dropped and computed again, with the same dropout, when
    its gradient is there. That is gradient caching (arXiv:2101.06983) said in terms of autograd, so that it works
    inside an ordinary loss and an ordinary `backward`.

    Args:
        tower: inputs → (inputs, dim); it must treat inputs one by one (no batch norm in train mode).
        inputs: anything with a length that slices.
    """
    if size is None or len(inputs) <= size:
        return tower(inputs)
    parts = [inputs[start : start + size] for start in range(0, len(inputs), size)]
    return torch.cat([checkpoint(tower, part, use_reentrant=False) for part in parts])


def grad_cache(
    towers: Sequence[Callable[[Any], Tensor]],
    inputs: Sequence[Any],
    loss: Callable[..., Tensor],
    *,
    size: int,
    backward: Callable[[Tensor], Any] | None = None,
) -> Tensor:
    """One step's gradients for a batch of any size, for a training step of your own (`automatic_optimization=False`).

    Every tower first runs without a graph, chunk by chunk; the loss and its gradient are taken at the vectors; then
    each chunk runs again, with a graph and the same dropout, and its vectors' gradient flows into the parameters.

    Args:
        towers: inputs → (inputs, dim) each, such as the volume's and the text's.
        inputs: of each tower: anything with a length that slices.
        loss: takes the towers' vectors; its own parameters (a temperature) get their gradients too.
        size: inputs of one chunk.
        backward: what runs backward, such as Lightning's `manual_backward`; default `Tensor.backward`.

    Returns:
        the loss, detached. Gradients are in the parameters' `.grad`.

    Source: GradCache (Gao et al. 2021, arXiv:2101.06983).
    """
    backward = backward or torch.Tensor.backward
    vectors, states = [], []
    for tower, given in zip(towers, inputs, strict=True):
        parts = []
        for start in range(0, len(given), size):
            states.append(_random_state())
            with torch.no_grad():
                parts.append(tower(given[start : start + size]))
        vectors.append(torch.cat(parts).requires_grad_())
    value = loss(*vectors)
    backward(value)
    after, states = _random_state(), iter(states)
    for tower, given, vector in zip(towers, inputs, vectors, strict=True):
        for start in range(0, len(given), size):
            _set_random_state(next(states))
            out = tower(given[start : start + size])
            if out.requires_grad:
                # Σ vector · gradient has exactly the wanted gradient, and lets Lightning scale it.
                backward((out * vector.grad[start : start + size]).sum())
    _set_random_state(after)
    return value.detach()


def _random_state() -> tuple[Tensor, tuple[list[int], list[Tensor]]]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return torch.get_rng_state(), get_device_states(*(torch.empty(0, device=f"cuda:{index}") for index in devices))


def _set_random_state(state: tuple[Tensor, tuple[list[int], list[Tensor]]]) -> None:
    torch.set_rng_state(state[0])
    set_device_states(*state[1])
