"""Every family of language model: the same checks on a tiny random one of each, offline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_language import FAMILIES, PROMPTS, REPORTS, volume_lm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from vol3d.model.decoding import CapturedDecoder, StaticDecoder
from vol3d.model.language import Lora, Prefix


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_batch_with_left_padding_and_the_lean_loop_write_what_transformers_writes_one_by_one(family: str) -> None:
    model = volume_lm(family, template=True)
    features = model.encode(torch.randn(2, 1, 8, 8, 8))
    apart = [model.generate(features[[row]], [PROMPTS[row]], max_new_tokens=16, lean=False)[0] for row in range(2)]
    assert apart[0] != apart[1]
    assert model.generate(features, PROMPTS, max_new_tokens=16, lean=False) == apart
    assert model.generate(features, PROMPTS, max_new_tokens=16) == apart
    assert ["".join(model.stream(features[[row]], PROMPTS[row], max_new_tokens=16)) for row in range(2)] == apart


def test_packed_rows_cost_the_same_loss_and_give_the_same_gradients(family: str) -> None:
    model = volume_lm(family)
    features = model.encode(torch.randn(3, 1, 8, 8, 8))
    features.tokens = features.tokens.detach().requires_grad_()
    prompts = ["<volume>Report:"] * 3
    expected = model.language_loss(features, prompts, REPORTS)
    (wanted,) = torch.autograd.grad(expected, features.tokens)
    packed = model.language_loss(features, prompts, REPORTS, pack=40)
    torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(packed, features.tokens)[0], wanted, rtol=1e-3, atol=1e-5)


def test_many_prompts_of_one_volume_are_answered_as_one_by_one(family: str) -> None:
    model = volume_lm(family, template=True)
    features = model.encode(torch.randn(2, 1, 8, 8, 8))
    prompts = ["<volume>Report of the liver:", "<volume>Report of the left lung:", "<volume>Report"]
    many = model.generate_many(features, prompts, max_new_tokens=10)
    apart = [
        [model.generate(features[[row]], [prompt], max_new_tokens=10)[0] for prompt in prompts] for row in range(2)
    ]
    assert many == apart


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize("kind", ["lora", "dora", "prefix", "tokens"])
def test_adapters_alone_learn_and_generation_goes_with_them(family: str, kind: str) -> None:
    settings = {
        "lora": {"lora": Lora(rank=2)}, "dora": {"lora": Lora(rank=2, dora=True)}, "prefix": {"prefix": Prefix(3)},
        "tokens": {"special_tokens": ["[SEG]"], "train": "tokens"},
    }[kind]  # fmt: skip
    model = volume_lm(family, **settings)
    features = model.encode(torch.randn(2, 1, 8, 8, 8))
    model.language_loss(features, PROMPTS, ["The liver is normal.[SEG]"] * 2).backward()
    moved = {name for name, p in model.language.named_parameters() if p.grad is not None and p.grad.any()}
    wanted = {"lora": "lora_B", "dora": "lora_B", "prefix": "prefix_states", "tokens": ".rows"}[kind]
    learns = {name for name, p in model.language.named_parameters() if p.requires_grad}
    assert any(wanted in name for name in moved)
    assert moved <= learns
    assert all(("lora_" in name) or ("prefix_states" in name) or name.endswith(".rows") for name in learns)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.split("language.")[-1] in learns:
                parameter.normal_(std=0.3)
    slow = model.generate(features, PROMPTS, max_new_tokens=12, lean=False)
    assert model.generate(features, PROMPTS, max_new_tokens=12) == slow
    apart = [model.generate(features[[row]], [PROMPTS[row]], max_new_tokens=12)[0] for row in range(2)]
    assert apart == slow


class Emulated(CapturedDecoder):
    """The captured step without a GPU: a replay takes the same step on the same buffers."""

    def _capture(self) -> Callable[[], None]:
        for _ in range(3):
            self.hidden = self._same_step()

        def replay() -> None:
            self.hidden.copy_(self._same_step())

        return replay


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "smollm3", "mistral-wide"])
@pytest.mark.parametrize("settings", [{}, {"lora": Lora(rank=2)}, {"prefix": Prefix(3)}])
def test_a_captured_step_writes_what_the_lean_loop_writes(
    family: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = volume_lm(family, **settings).eval()
    features = model.encode(torch.randn(2, 1, 8, 8, 8))
    expected = model.generate(features, PROMPTS, max_new_tokens=16)
    taken: list[Emulated] = []

    def made(*given: Any) -> Emulated:
        taken.append(Emulated(*given))
        return taken[-1]

    monkeypatch.setattr("vol3d.model.generation.StaticDecoder", made)
    assert model.generate(features, PROMPTS, max_new_tokens=16) == expected
    assert taken


class Calls(TorchDispatchMode):
    """What is called, with every number that is not in a tensor: all that a captured graph keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        numbers = [value for value in tree_flatten((args, kwargs))[0] if not isinstance(value, torch.Tensor)]
        self.made.append((str(func), numbers))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("decoder", [Emulated, StaticDecoder])
def test_a_captured_step_does_the_same_at_every_token(decoder: type[StaticDecoder]) -> None:
    language, steps = volume_lm("llama").language, []
    with torch.no_grad():
        cache = language.new_cache()
        language.hidden(torch.randn(1, 5, 32), torch.ones(1, 5), None, cache)
        step = decoder(language.causal_lm, cache, 8, None, torch.tensor([5]))
        for _ in range(4):
            with Calls() as calls:
                step(torch.randn(1, 32))
            steps.append(calls.made)
    assert (steps[1] == steps[2] == steps[3]) == (decoder is Emulated)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: a graph is captured")
@pytest.mark.parametrize("autocast", [False, True])
def test_a_captured_graph_writes_the_same_on_a_gpu(autocast: bool) -> None:
    model = volume_lm("llama", lora=Lora(rank=2)).eval().cuda()
    features = model.encode(torch.randn(2, 1, 8, 8, 8, device="cuda"))
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        expected = model.generate(features, PROMPTS, max_new_tokens=16)
        model.language.cuda_graph = True
        assert model.generate(features, PROMPTS, max_new_tokens=16) == expected
