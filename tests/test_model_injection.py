"""Multi-layer injection: a closed gate changes nothing, an open one does, and every stage of the encoder learns."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from small_language import PROMPTS, REPORTS, language

import vol3d
from vol3d.model.injection import MultiLayerProjector
from vol3d.model.interfaces import Features
from vol3d.model.language import Lora, Prefix
from vol3d.model.likelihood import answer_likelihoods, visual_rows
from vol3d.model.pretrained import build, save
from vol3d.model.volume_lm import VolumeLM

REPORTS = REPORTS[:2]
ENCODER = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": (8, 8, 8), "stem": "conv"}


def model(*, opened: bool = False, scales: bool = True, **settings: object) -> VolumeLM:
    encoder = vol3d.encoders.create("vit3d-tiny", **ENCODER)
    dims = [scale.shape[1] for scale in encoder(torch.zeros(1, 1, 16, 16, 16)).scales]
    projector = partial(MultiLayerProjector, layers=list(range(len(dims))), scale_dims=dims if scales else [])
    made = vol3d.VolumeLM(encoder, projector, language(**settings)).eval()
    if opened:
        with torch.no_grad():
            for gate in made.projector.gates:
                gate.normal_()
    return made


def image(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, 16, 16, 16)


def test_the_encoder_has_scales_to_inject() -> None:
    assert len(vol3d.encoders.create("vit3d-tiny", **ENCODER)(image()).scales) >= 2


def test_a_closed_gate_leaves_the_model_as_it_is_and_an_open_one_does_not() -> None:
    made = model()
    features = made.encode(image())
    closed = made.language_loss(features, PROMPTS, REPORTS)
    made.projector.injections = lambda features: {}
    assert made.language_loss(features, PROMPTS, REPORTS) == closed
    del made.projector.injections
    for index in range(len(made.projector.gates)):
        with torch.no_grad():
            made.projector.gates[index].fill_(1.0)
        assert abs(made.language_loss(features, PROMPTS, REPORTS) - closed) > 1e-4
        with torch.no_grad():
            made.projector.gates[index].zero_()


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_stage_and_checkpointing_does_not_change_them(
    lora: Lora | None, checkpointing: bool
) -> None:
    made = model(lora=lora, opened=True)
    features = made.encode(image())
    scales = tuple(scale.detach().requires_grad_() for scale in features.scales)
    features = Features(features.tokens.detach(), features.grid_size, scales=scales)
    expected = torch.autograd.grad(made.language_loss(features, PROMPTS, REPORTS), [*scales, *made.projector.gates])
    assert all(grad.abs().max() > 1e-8 for grad in expected)
    if checkpointing:
        made.language.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    made.train()
    # Two losses before one backward pass, as two tasks of a step do.
    other = Features(features.tokens + 1, features.grid_size, scales=tuple(s.detach() + 1 for s in scales))
    loss = made.language_loss(features, PROMPTS, REPORTS) + 0 * made.language_loss(other, PROMPTS, REPORTS)
    torch.testing.assert_close(torch.autograd.grad(loss, [*scales, *made.projector.gates]), expected)


def test_what_is_injected_is_there_when_it_writes_packs_and_drops() -> None:
    made = model(opened=True)
    features = made.encode(image())
    slow = made.generate(features, PROMPTS, max_new_tokens=12, lean=False)
    assert made.generate(features, PROMPTS, max_new_tokens=12) == slow
    assert [made.generate(features[[row]], [PROMPTS[row]], max_new_tokens=12)[0] for row in range(2)] == slow
    assert made.generate_many(features, PROMPTS[:1], max_new_tokens=12)[0] == slow[:1]
    beams = made.generate(features, PROMPTS, max_new_tokens=12, num_beams=3)
    apart = [made.generate(features[[row]], [PROMPTS[row]], max_new_tokens=12, num_beams=3)[0] for row in range(2)]
    assert beams == apart
    loss = made.language_loss(features, PROMPTS, REPORTS)
    torch.testing.assert_close(made.language_loss(features, PROMPTS, REPORTS, pack=100), loss)
    assert made.generate(features, PROMPTS, max_new_tokens=12, keep=0.5) != slow
    with torch.no_grad():
        for gate in made.projector.gates:
            gate.zero_()
    assert made.generate(features, PROMPTS, max_new_tokens=12) != slow


@torch.no_grad()
@pytest.mark.parametrize("scales", [True, False])
def test_what_is_injected_is_there_when_a_volume_is_read_for_many_prompts(scales: bool) -> None:
    """Neither the encoder's tokens nor its scales are repeated for them."""
    made, rows = model(opened=True, scales=scales), [1, 0, 1]
    features = made.encode(image())
    prompts, texts = [*PROMPTS, "<volume>"], [*REPORTS, "No."]
    repeated = visual_rows(made, features, rows)
    losses = [
        float(made.language_loss(features[[row]], [p], [t])) for row, p, t in zip(rows, prompts, texts, strict=True)
    ]
    again = [float(made.language_loss(repeated[[i]], [prompts[i]], [texts[i]])) for i in range(3)]
    assert again == pytest.approx(losses, abs=1e-5)
    assert made.generate(repeated, prompts, max_new_tokens=8) == made.generate(
        features[rows], prompts, max_new_tokens=8
    )
    for part in (repeated, features[rows]):
        likely = answer_likelihoods(made, part, prompts, [[text] for text in texts])
        assert [-value for (value,) in likely] == pytest.approx(losses, abs=1e-4)


@pytest.mark.parametrize("ending", [None, torch.ones(32)], ids=["prompt", "ending"])
def test_hidden_states_hold_what_is_injected_and_the_prefix_one_by_one_as_in_a_batch(
    ending: torch.Tensor | None,
) -> None:
    made = model(opened=True, prefix=Prefix(3))
    features = made.encode(image())
    hidden = made.last_hidden(features, PROMPTS, ending=ending)
    alone = [made.last_hidden(features[[row]], [PROMPTS[row]], ending=ending) for row in range(2)]
    torch.testing.assert_close(hidden, torch.cat(alone), atol=1e-5, rtol=1e-4)
    for changed in (made.projector.gates[0], next(made.language.prefix_states.parameters())):
        with torch.no_grad():
            changed.add_(1.0)
        other, hidden = hidden, made.last_hidden(features, PROMPTS, ending=ending)
        assert (hidden - other).abs().amax(dim=1).min() > 1e-3


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    made = model(opened=True)
    save(tmp_path / "model", made, {}, vol3d.Grid(spacing=(4, 4, 4), shape=(16, 16, 16), window=(-1000, 1000)))
    again = build(tmp_path / "model")[0]
    volumes = image()
    expected = made.language_loss(made.encode(volumes), PROMPTS, REPORTS)
    torch.testing.assert_close(again.language_loss(again.encode(volumes), PROMPTS, REPORTS), expected, rtol=0, atol=0)


def test_what_does_not_fit_is_refused() -> None:
    made = model()
    with pytest.raises(ValueError, match=r"injects into layer 7, the language model has layers 0 to 2"):
        vol3d.VolumeLM(made.encoder, partial(MultiLayerProjector, layers=[7]), made.language)
    with pytest.raises(ValueError, match=r"3 scales for 2 layers"):
        MultiLayerProjector(24, 32, layers=[0, 1], scale_dims=[4, 8, 16])
    features = Features(torch.randn(1, 8, 24), (2, 2, 2), scales=(torch.randn(1, 5, 4, 4, 4),))
    with pytest.raises(ValueError, match=r"scales of \(5,\) channels, this projector is made for \(8,\)"):
        MultiLayerProjector(24, 32, layers=[0], scale_dims=[8]).injections(features)
