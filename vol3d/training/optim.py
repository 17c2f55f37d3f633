"""AdamW: torch's own, or one whose moments the CPU's memory takes when the card is full."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch

from vol3d.model.cross_entropy import is_sharded

Kind = Literal["adamw", "paged_adamw", "paged_adamw_8bit"]
STATE_SHARE: dict[Kind, float] = {"adamw": 1.0, "paged_adamw": 1.0, "paged_adamw_8bit": 0.254}
"""Memory of the moments against two fp32 numbers a weight; in 8 bits with a scale for every 256 of them."""


def adamw(
    groups: list[dict[str, Any]], kind: Kind, *, betas: tuple[float, float], precision: str
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) at a base rate of 1, for a schedule of absolute rates.

    Args:
        groups: parameters with their weight_decay.
        kind: "paged_adamw" holds the moments in pages that move to the CPU's memory while the card is full (QLoRA,
            arXiv:2305.14314), "paged_adamw_8bit" in 8 bits as well (arXiv:2110.02861); both are bitsandbytes'.
        precision: the trainer's.

    Raises:
        ValueError: pages without a CUDA GPU, or for weights that FSDP or DeepSpeed divide.
        ImportError: no bitsandbytes.
    """
    if kind == "adamw":
        # One pass over weights and moments. Under mixed precision Lightning clips no fused optimizer's gradients.
        return torch.optim.AdamW(groups, lr=1.0, betas=betas, fused=not precision.endswith("-mixed"))
    parameters = [parameter for group in groups for parameter in group["params"]]
    if any(is_sharded(parameter) for parameter in parameters):
        raise ValueError(
            f"optimizer {kind!r} with weights divided over devices: leave it out and let the strategy divide the "
            "moments, or move them to the CPU (overlays/deepspeed_zero3_offload.yaml)"
        )
    if elsewhere := sorted({parameter.device.type for parameter in parameters} - {"cuda"}):
        raise ValueError(f"optimizer {kind!r} needs a CUDA GPU, the weights are on {elsewhere[0]}: leave it out")
    if find_spec("bitsandbytes") is None:
        raise ImportError(f"optimizer {kind!r} needs the package bitsandbytes: pip install 'vol3d[qlora]'")
    import bitsandbytes

    paged = {"paged_adamw": "PagedAdamW", "paged_adamw_8bit": "PagedAdamW8bit"}[kind]
    return getattr(bitsandbytes.optim, paged)(groups, lr=1.0, betas=betas)
