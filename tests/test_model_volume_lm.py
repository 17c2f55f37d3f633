"""The whole model: it looks at the volume, refuses what does not fit, and survives saving."""

from functools import partial

import pytest
import torch

import vol3d
from vol3d.model.interfaces import Features

REPORTS = ["The liver is normal.", "There is a left pleural effusion."]
PROMPTS = ["<volume>Report:", "<volume>Report:"]


@pytest.fixture
def model() -> vol3d.VolumeLM:
    return vol3d.VolumeLM(
        vol3d.encoders.create("vit3d-tiny", embed_dim=24, depth=1, num_heads=2, patch_size=(4, 4, 4)),
        partial(vol3d.PerceiverProjector, num_latents=4, num_heads=2),
        vol3d.LanguageModel.scratch(REPORTS, embed_dim=32, depth=2, num_heads=2, max_length=64),
    ).eval()


def image(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, 8, 8, 8)


def test_every_part_gets_a_gradient_from_the_report_loss(model: vol3d.VolumeLM) -> None:
    model.language_loss(model.encode(image()), PROMPTS, REPORTS).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_the_loss_depends_on_the_volume(model: vol3d.VolumeLM) -> None:
    volumes = image()
    right = model.language_loss(model.encode(volumes), PROMPTS, REPORTS)
    other = model.language_loss(model.encode(volumes + 1), PROMPTS, REPORTS)
    assert abs(right.item() - other.item()) > 1e-5


def test_prompt_tokens_are_not_supervised(model: vol3d.VolumeLM) -> None:
    """The mean is over the answer alone: the same answer to a longer prompt has the same number of terms."""
    seen = []
    model.language.loss = lambda embeds, attention, labels: seen.append((labels != -100).sum().item()) or embeds.sum()
    features = model.encode(image(1))
    for prompt in ("<volume>", "<volume>The liver is normal. Report:"):
        model.language_loss(features, [prompt], REPORTS[:1])
    assert seen == [len(model.language.answer_ids(REPORTS[0]))] * 2


def test_generation_in_a_batch_equals_one_by_one(model: vol3d.VolumeLM) -> None:
    features = model.encode(image())
    prompts = ["<volume>Report:", "<volume>There is a left pleural effusion. Report:"]
    together = model.generate(features, prompts, max_new_tokens=8)
    apart = [model.generate(features[[row]], [prompts[row]], max_new_tokens=8)[0] for row in range(2)]
    assert together == apart


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.5}])
def test_a_long_prompt_leaves_its_neighbours_their_room(model: vol3d.VolumeLM, options: dict) -> None:
    """64 tokens in all: behind the longest prompt fewer than the 40 that fit behind the others."""
    features = model.encode(image(3))
    prompts = ["<volume>Report:", "<volume>There is a left pleural effusion. The liver is normal. Report:", "<volume>:"]
    together = model.generate(features, prompts, max_new_tokens=40, **options)
    apart = [model.generate(features[[row]], [prompts[row]], max_new_tokens=40, **options)[0] for row in range(3)]
    assert together == apart
    assert [64 - len(model.language.prompt_ids(prompt, 4)) >= 40 for prompt in prompts] == [True, False, True]
    if not options:
        apart = [model.generate(features[[0]], [prompt], max_new_tokens=40)[0] for prompt in prompts]
        assert model.generate_many(features[[0]], prompts, max_new_tokens=40) == [apart]


def test_too_long_a_report_gives_both_lengths(model: vol3d.VolumeLM) -> None:
    with pytest.raises(ValueError, match=r"take \d{3} tokens, the language model holds 64"):
        model.language_loss(model.encode(image(1)), PROMPTS[:1], ["liver " * 100])


def test_widths_that_do_not_meet_are_refused(model: vol3d.VolumeLM) -> None:
    with pytest.raises(ValueError, match=r"maps 24 → 48, encoder and language model need 24 → 32"):
        vol3d.VolumeLM(model.encoder, vol3d.MLPProjector(24, 48), model.language)
    with pytest.raises(ValueError, match="needs a projector"):
        vol3d.VolumeLM(model.encoder, None, model.language)


def test_a_model_without_language_encodes_and_says_so() -> None:
    model = vol3d.VolumeLM(vol3d.encoders.create("vit3d-tiny", embed_dim=24, depth=1, num_heads=2))
    assert isinstance(model.encode(torch.randn(1, 1, 16, 16, 8)), Features)
    with pytest.raises(ValueError, match="no language model"):
        model.generate(model.encode(torch.randn(1, 1, 16, 16, 8)), ["<volume>"])
