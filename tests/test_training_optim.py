"""Which AdamW a run gets, and what is refused before its first step."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import world

from vol3d.training.optim import adamw

BETAS = (0.9, 0.98)


class OnGpu(torch.nn.Parameter):
    """Says that it lies on a GPU."""

    device = torch.device("cuda")


def groups(kind: type[torch.nn.Parameter] = torch.nn.Parameter) -> list[dict[str, Any]]:
    return [{"params": [kind(torch.ones(4, 4))], "weight_decay": 0.5}]


def test_torchs_own_takes_one_pass_where_lightning_can_clip() -> None:
    found = {kind: adamw(groups(), "adamw", betas=BETAS, precision=kind) for kind in ("32-true", "bf16-mixed")}
    assert [optimizer.defaults["fused"] for optimizer in found.values()] == [True, False]
    for optimizer in found.values():
        (parameter,) = optimizer.param_groups[0]["params"]
        parameter.grad = torch.full((4, 4), 2.0)
        optimizer.step()
        # One step: decay by rate · 0.5, then the rate against the gradient's sign.
        torch.testing.assert_close(parameter.detach(), torch.full((4, 4), 1.0 - 0.5 - 1.0))


@pytest.mark.parametrize(("kind", "name"), [("paged_adamw", "PagedAdamW"), ("paged_adamw_8bit", "PagedAdamW8bit")])
def test_pages_are_bitsandbytes(kind: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = groups(OnGpu)
    monkeypatch.setattr("vol3d.training.optim.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"'{kind}' needs the package bitsandbytes: pip install 'vol3d\[qlora\]'"):
        adamw(given, kind, betas=BETAS, precision="bf16-mixed")
    made: list[Any] = []

    class Fake(torch.optim.Optimizer):
        def __init__(self, *taken: Any, **options: Any) -> None:
            made.append((taken, options))

    monkeypatch.setattr("vol3d.training.optim.find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(**{name: Fake})))
    assert isinstance(adamw(given, kind, betas=BETAS, precision="bf16-mixed"), Fake)
    assert made == [((given,), {"lr": 1.0, "betas": BETAS})]


def test_pages_are_refused_where_they_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"'paged_adamw' needs a CUDA GPU, the weights are on cpu: leave it out"):
        adamw(groups(), "paged_adamw", betas=BETAS, precision="32-true")
    divided = groups(OnGpu)
    divided[0]["params"][0].ds_id = 3
    with pytest.raises(ValueError, match=r"'paged_adamw_8bit' with weights divided over devices: .*zero3_offload"):
        adamw(divided, "paged_adamw_8bit", betas=BETAS, precision="bf16-mixed")


def test_a_module_passes_its_choice_on(tmp_path: Any) -> None:
    module = world.module(optimizer="paged_adamw")
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        world.trainer(1, tmp_path).fit(module, world.World([world.study(n) for n in range(2)], batch_size=2))
