"""The chunked loss is the full one, to its gradients, and never holds all logits."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import two_processes
from torch import Tensor, nn

from vol3d.model.cross_entropy import linear_cross_entropy


def parts(*, bias: bool) -> tuple[Tensor, nn.Linear, Tensor]:
    return torch.randn(23, 16, requires_grad=True), nn.Linear(16, 50, bias=bias), torch.randint(0, 50, (23,))


@pytest.mark.parametrize("cap", [None, 1.5], ids=["plain", "capped"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_loss_and_gradients_equal_the_full_ones(bias: bool, frozen: bool, cap: float | None) -> None:
    hidden, head, targets = parts(bias=bias)
    head.requires_grad_(not frozen)
    transform = None if cap is None else lambda logits: torch.tanh(logits / cap) * cap
    logits = head(hidden) if transform is None else transform(head(hidden))
    wanted = [hidden] if frozen else [hidden, *head.parameters()]
    expected = F.cross_entropy(logits, targets)
    gradients = torch.autograd.grad(3 * expected, wanted)
    # 0.001 MiB hold 5 rows of 50 logits: five chunks, the last one short.
    loss = linear_cross_entropy(hidden, head, targets, transform=transform, chunk_mib=0.001)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, wanted), gradients)


def test_no_tensor_as_large_as_all_logits_is_made() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, Tensor):
                    self.size = max(self.size, tensor.numel())
            return out

    hidden, head, targets = (
        torch.randn(256, 8, requires_grad=True),
        nn.Linear(8, 500, bias=False),
        torch.zeros(256).long(),
    )
    with Largest() as chunked:
        linear_cross_entropy(hidden, head, targets, chunk_mib=0.02).backward()
    with Largest() as full:
        F.cross_entropy(head(hidden), targets).backward()
    assert full.size == 256 * 500
    assert chunked.size <= 12 * 500


def test_half_precision_keeps_the_loss_in_fp32() -> None:
    hidden, head, targets = parts(bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, head, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(head(hidden), targets), rtol=0.01, atol=0.01)
    loss.backward()
    assert hidden.grad.dtype == head.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_float16_is_as_exact_as_torchs_own_loss_under_a_loss_scale(dtype: torch.dtype) -> None:
    """Probabilities of 1 / 16,000, shared among 1,024 positions, are less than float16 holds."""
    torch.manual_seed(0)
    hidden, head, scale = torch.randn(1024, 16, dtype=dtype), nn.Linear(16, 16000), 65536.0
    nn.init.normal_(head.weight, std=0.02)
    targets = torch.randint(0, 16000, (1024,))

    def gradients(*, ours: bool, half: bool) -> list[Tensor]:
        read = (hidden if half else hidden.float()).clone().requires_grad_()
        with torch.autocast("cpu", torch.float16, enabled=half):
            loss = linear_cross_entropy(read, head, targets) if ours else F.cross_entropy(head(read).float(), targets)
        found = torch.autograd.grad(scale * loss, [read, *head.parameters()])
        return [gradient.float() / scale for gradient in found]

    exact = gradients(ours=False, half=False)
    errors = [
        [float((given - right).norm() / right.norm()) for given, right in zip(found, exact, strict=True)]
        for found in (gradients(ours=True, half=True), gradients(ours=False, half=True))
    ]
    assert all(mine < 1.2 * torchs + 1e-4 for mine, torchs in zip(*errors, strict=True)), errors


def test_liger_is_refused_where_it_cannot_run() -> None:
    hidden, head, targets = parts(bias=False)
    with pytest.raises(ValueError, match=r"liger-kernel runs on a GPU, the model is on cpu: use .*'chunked'"):
        linear_cross_entropy(hidden, head, targets, method="liger")


def test_a_weight_that_is_sharded_is_used_by_its_own_module_alone() -> None:
    """ZeRO-3 and FSDP gather a weight when its module is called; read directly it would be a shard."""
    hidden, head, targets = parts(bias=False)
    head.weight.ds_id = 0
    called = []
    head.register_forward_pre_hook(lambda *_: called.append(True))
    loss = linear_cross_entropy(hidden, head, targets)
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(hidden, head.weight), targets))
    assert called


def read_in_chunks() -> tuple[int, float, float]:
    """How often the head of a process runs, forwards and back, its loss and the one without chunks."""
    dist.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]), timeout=timedelta(seconds=60))
    torch.manual_seed(0)
    hidden, head, targets = parts(bias=False)
    head.weight.ds_id = 0
    runs: list[int] = []
    head.register_forward_hook(lambda *_: runs.append(1))
    some = 23 if dist.get_rank() else 7
    loss = linear_cross_entropy(hidden[:some], head, targets[:some], chunk_mib=0.001)
    loss.backward()
    return len(runs), float(loss.detach()), float(F.cross_entropy(hidden[:some] @ head.weight.T, targets[:some]))


def test_processes_with_fewer_tokens_gather_a_divided_head_as_often(tmp_path: Path) -> None:
    """Reports differ in length; the process with the shorter ones would leave the other waiting for the weight."""
    found = two_processes.together(read_in_chunks, tmp_path)
    assert [runs for runs, _, _ in found] == [10, 10]
    for _, loss, wanted in found:
        assert loss == pytest.approx(wanted, rel=1e-5)
