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
    volume, text = volume.float(), text.float()
    every_volume, every_text = gather(torch.cat([volume, text], dim=1)).chunk(2, dim=1)
    own, every = _numbers(same, volume)

    def rows(volume: Tensor, text: Tensor, own: Tensor) -> Tensor:
        target = own[:, None] == every[None, :]
        target = target / target.sum(dim=1, keepdim=True)
        return sum(
            F.cross_entropy(scale * query @ items.T, target, reduction="sum") / 2
            for query, items in ((volume, every_text), (text, every_volume))
        )

    return _mean_over_ranks(_by_rows(rows, chunk, volume, text, own), every_volume, len(every))


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
    volume, text = volume.float(), text.float()
    every_text = gather(text)
    own, every = _numbers(same, volume)

    def rows(volume: Tensor, own: Tensor) -> Tensor:
        sign = torch.where(own[:, None] == every[None, :], 1.0, -1.0)
        return -F.logsigmoid(sign * (scale * volume @ every_text.T + bias)).sum()

    return _mean_over_ranks(_by_rows(rows, chunk, volume, own), every_text, len(every))


def gather(tensor: Tensor) -> Tensor:
    """The rows of every rank, in the order of the ranks, with gradients back to the rank they came from."""
    return _Gather.apply(tensor, _counts(tensor)) if _ranks() > 1 else tensor


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums what every rank's loss says about a row."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad.split(ctx.counts)[dist.get_rank()], None


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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


def _mean_over_ranks(total: Tensor, gathered: Tensor, pairs: int) -> Tensor:
    """This rank's sum → what it must return so that the mean over ranks (which DDP takes) is the sum / all pairs.

    A rank without a pair still takes part in the backward pass of the gathering: its loss is a zero that hangs on it.
    """
    return total * (_ranks() / max(1, pairs)) + gathered.sum() * 0.0


def any_rank(count: int, device: torch.device) -> bool:
    """Whether any rank counts something: all must then compute the loss, because its gathering waits for each."""
    if _ranks() == 1:
        return count > 0
    total = torch.tensor([count], device=device)
    dist.all_reduce(total)
    return int(total) > 0


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
