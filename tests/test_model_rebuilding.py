"""Norms, activations and gates made again in the backward pass: the same numbers, and less held."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from small_language import FAMILIES, language
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import vol3d
from vol3d.encoders.vit3d import Block
from vol3d.model.adapters import Lora
from vol3d.model.rebuilding import rebuild_gates, rebuilt
from vol3d.training.rehearsal import Held

CHEAP = {"norm": nn.LayerNorm(8), "GELU": nn.GELU(), "GELU by tanh": nn.GELU("tanh"), "ReLU": nn.ReLU()}


def gradients(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    module.zero_grad()
    given = run(x)
    given.square().sum().backward()
    return [given.detach(), x.grad, *[p.grad.clone() for p in module.parameters()]]


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_values_and_gradients_are_the_same_to_the_bit(name: str, autocast: bool, checkpointing: bool) -> None:
    cheap, linear = copy.deepcopy(CHEAP[name]), nn.Linear(8, 6)
    both, x = nn.ModuleList([cheap, linear]), torch.randn(3, 5, 8)

    def run(x: Tensor, body: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            x = 1.0 * x
            return checkpoint(body, x, use_reentrant=False) if checkpointing else body(x)

    plain = gradients(partial(run, body=lambda x: linear(cheap(x))), both, x)
    lean = gradients(partial(run, body=lambda x: rebuilt(cheap, x, into=linear)), both, x)
    for expected, found in zip(plain, lean, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_what_is_cheap_is_gone_once_it_was_read(autocast: bool) -> None:
    seen: list[StorageWeakRef] = []

    class Watching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(StorageWeakRef(x.untyped_storage()))
            return super().forward(x)

    linear, x = Watching(8, 6), torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        held = linear(nn.functional.gelu(1.0 * x))
        lean = rebuilt(nn.functional.gelu, 1.0 * x, into=linear)
    # In the plain form the product holds its input; under autocast a copy of it, as large.
    assert [ref.expired() for ref in seen] == [autocast, True]
    assert held.requires_grad
    assert lean.requires_grad


def test_without_gradients_nothing_is_wrapped() -> None:
    linear = nn.Linear(8, 6)
    with torch.no_grad():
        assert rebuilt(nn.functional.gelu, torch.randn(2, 8), into=linear).grad_fn is None
    linear.requires_grad_(False)
    assert not rebuilt(nn.functional.gelu, torch.randn(2, 8), into=linear).requires_grad


@pytest.mark.parametrize("activation", [nn.GELU(), nn.functional.gelu])
def test_gradients_of_gradients_are_the_same(activation: Callable[[Tensor], Tensor]) -> None:
    linear, x = nn.Linear(8, 6), torch.randn(4, 8)

    def penalty(body: Callable[[Tensor], Tensor]) -> Tensor:
        point = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(body(point).square().sum(), point, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), linear.weight)[0]

    lean = penalty(lambda x: rebuilt(activation, x, into=linear))
    torch.testing.assert_close(lean, penalty(lambda x: linear(nn.functional.gelu(x))))


def held(body: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes a forward pass leaves for the backward pass, weights apart."""
    with Held(module, torch.optim.SGD(module.parameters())) as counter:
        loss = body()
    assert loss.requires_grad
    return counter.live - counter.weights


@pytest.mark.parametrize(("activation", "wide"), [(nn.GELU(), 2), (nn.functional.gelu, 3)])
def test_gelus_gradient_is_written_where_its_result_lay(activation: Callable[[Tensor], Tensor], wide: int) -> None:
    widen, narrow, made = nn.Linear(8, 32), nn.Linear(32, 8), []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made.append(func(*args, **(kwargs or {})))
            return made[-1]

    loss = rebuilt(activation, widen(torch.randn(64, 8)), into=narrow).sum()
    with Watching():
        loss.backward()
    pieces = {out.untyped_storage().data_ptr() for out in made if isinstance(out, Tensor) and out.shape == (64, 32)}
    assert len(pieces) == wide, "the result made again, its gradient, and another tensor where there is no such reuse"


def plain(cheap: Callable[..., Tensor], *inputs: Tensor, into: Callable[[Tensor], Tensor]) -> Tensor:
    return into(cheap(*inputs))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_transformer_block_holds_a_third_less_and_no_more_when_checkpointed(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = Block(embed_dim=32, num_heads=2, mlp_ratio=4.0, qkv_bias=False)
    x = torch.randn(1, 64, 32, requires_grad=True)

    def step() -> Tensor:
        return (checkpoint(block, x, use_reentrant=False) if checkpointing else block(x)).sum()

    lean = held(step, block)
    monkeypatch.setattr("vol3d.encoders.vit3d.rebuilt", plain)
    if checkpointing:
        assert lean == held(step, block)
    else:
        assert lean < 0.67 * held(step, block)


@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gates_hold_less_and_no_more_when_checkpointed(family: str, checkpointing: bool) -> None:
    model = language(family, lora=Lora(rank=2, dropout=0.1 if checkpointing else 0.0)).train()
    if checkpointing:
        model.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    embeds, labels = torch.randn(2, 64, 32, requires_grad=True), torch.randint(5, 20, (2, 64))
    sizes = []
    for lean in (True, False):
        for layer in () if lean else model.causal_lm.get_decoder().layers:
            del layer.mlp.forward
        sizes.append(held(lambda: model.loss(embeds, torch.ones_like(labels), labels), model))
    if checkpointing:
        assert sizes[0] == sizes[1]
    else:
        assert sizes[1] - sizes[0] == 3 * 2 * (2 * 64 * 48 * 4), "of each layer, the opened gate and the product"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [None, Lora(rank=2), Lora(rank=2, dropout=0.5)])
def test_gates_of_every_family_change_no_gradient(family: str, lora: Lora | None) -> None:
    model = language(family, lora=lora).train()
    embeds, labels = torch.randn(2, 12, 32), torch.randint(5, 20, (2, 12))
    mlps = [layer.mlp for layer in model.causal_lm.get_decoder().layers]
    assert all("forward" in vars(mlp) for mlp in mlps), "every layer's MLP is one that is known"
    found = []
    for lean in (True, False):
        torch.manual_seed(0)
        model.zero_grad()
        for mlp in mlps if not lean else ():
            del mlp.forward
        loss = model.loss(embeds, torch.ones_like(labels), labels)
        loss.backward()
        found.append([loss.detach(), *[p.grad.clone() for p in model.parameters() if p.grad is not None]])
    for expected, given in zip(*found, strict=True):
        torch.testing.assert_close(given, expected, rtol=0, atol=0)


def test_a_model_with_gates_can_be_copied_and_an_unknown_mlp_is_left() -> None:
    model = language()
    twin = copy.deepcopy(model)
    mlp, copied = (m.causal_lm.get_decoder().layers[0].mlp for m in (model, twin))
    assert copied.forward.__self__ is copied is not mlp
    assert rebuild_gates(nn.Sequential(nn.Linear(3, 3), nn.GELU())) == 0


def test_an_encoder_learns_the_same_under_bfloat16_and_checkpointing() -> None:
    encoder = vol3d.encoders.create("vit3d-small", embed_dim=48, depth=2, num_heads=2).train()
    image, found = torch.randn(1, 1, 32, 32, 16), []
    for checkpointing in (False, True):
        encoder.checkpointing = checkpointing
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            encoder(image).tokens.float().square().mean().backward()
        found.append([p.grad.clone() for p in encoder.parameters()])
    for expected, given in zip(*found, strict=True):
        torch.testing.assert_close(given, expected, rtol=0, atol=0)
