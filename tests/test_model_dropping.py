"""Fewer visual tokens: the budget is kept, shared among regions, and what is left keeps its place."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from small_language import PROMPTS, volume_lm

import vol3d
from vol3d.model.dropping import budget, kept_tokens
from vol3d.model.interfaces import Features
from vol3d.model.projectors import LinearProjector

GRID = (4, 4, 4)


def features(pooled: torch.Tensor | None = None, batch: int = 1) -> Features:
    return Features(torch.randn(batch, 64, 8), GRID, pooled=pooled)


@pytest.mark.parametrize(("keep", "count"), [(0.5, 32), (0.1, 6), (7, 7), (1.0, 64), (64, 64)])
@pytest.mark.parametrize("pooled", [False, True])
def test_as_many_are_kept_as_the_budget_says_each_once_and_in_order(
    keep: float | int, count: int, pooled: bool
) -> None:
    one = features(torch.randn(3, 8) if pooled else None, batch=3)
    kept = kept_tokens(one, torch.randn(3, 64, 16), keep)
    assert kept.shape == (3, count)
    assert (kept.diff(dim=1) > 0).all()


def test_budgets_that_make_no_sense_are_refused() -> None:
    for keep in (0.0, 1.5, 65, 0):
        with pytest.raises(ValueError, match=rf"keep={keep} of 64 visual tokens: .* 1 to 64"):
            budget(keep, 64)


def test_the_tokens_the_pooled_token_looks_at_are_kept() -> None:
    pooled = torch.randn(1, 8)
    one = features(pooled)
    looked_at = [3, 17, 40, 63]
    one.tokens[0, looked_at] = 5 * pooled
    assert set(looked_at) <= set(kept_tokens(one, torch.randn(1, 64, 16), 8)[0].tolist())
    zyx = kept_tokens(one, torch.randn(1, 64, 16), 8, LinearProjector(8, 16, order="zyx"))[0]
    place = {i: (i % 4) * 16 + (i // 4 % 4) * 4 + i // 16 for i in looked_at}
    assert set(place.values()) <= set(zyx.tolist())


def test_regions_share_the_budget_so_that_none_is_lost() -> None:
    """Two corners are looked at equally, one of them by a single token: it keeps its half of the budget."""
    one = features(torch.ones(1, 8))
    one.tokens.zero_()
    one.tokens[0, :, 0] = -40.0
    one.tokens[0, [0, 1, 4, 5, 16, 17, 20, 21], 0] = 2.0  # the first 2 × 2 × 2 corner, eight tokens
    one.tokens[0, 63, 0] = 2.0 + 8**0.5 * torch.tensor(8.0).log()  # the last, as much in one
    kept = kept_tokens(one, torch.randn(1, 64, 16), 8)[0]
    assert (kept >= 42).sum() == 4


def test_the_first_block_shares_the_budget_and_the_last_one_chooses() -> None:
    """HiRED: early attention says where there is something, late attention which tokens tell it."""
    attention = torch.full((1, 2, 64), 1e-6)
    first, last = [0, 1, 4, 5, 16, 17, 20, 21], [42, 43, 46, 47, 58, 59, 62, 63]  # two opposite corners
    attention[0, 0, first], attention[0, 0, last] = 0.75, 0.25
    attention[0, 1, [1, 5, 16]], attention[0, 1, 63] = 0.1, 0.2
    one = Features(torch.randn(1, 64, 8), GRID, pooled=torch.randn(1, 8), attention=attention)
    assert kept_tokens(one, torch.randn(1, 64, 16), 4).tolist() == [[1, 5, 16, 63]]
    turned = kept_tokens(one, torch.randn(1, 64, 16), 4, LinearProjector(8, 16, order="zyx"))
    assert turned.tolist() == [sorted((i % 4) * 16 + (i // 4 % 4) * 4 + i // 16 for i in (1, 5, 16, 63))]
    assert torch.equal(one[[0]].attention, attention)


def test_latents_that_say_the_same_are_kept_once() -> None:
    directions = torch.eye(8)[:4]
    visual = torch.cat([directions, directions + 0.01 * torch.randn(4, 8)]).repeat(2, 1, 1)
    visual = visual[:, torch.randperm(8)]
    # As many latents as the grid pooled by two has cells: they are no grid for that.
    latents = vol3d.PerceiverProjector(8, 8, num_latents=8, num_heads=2)
    kept = kept_tokens(Features(torch.randn(2, 64, 8), GRID), visual, 4, latents)
    assert {int(visual[0, token].argmax()) for token in kept[0]} == {0, 1, 2, 3}
    assert torch.equal(kept[0], kept_tokens(Features(torch.randn(1, 64, 8), GRID), visual[:1], 4, latents)[0])


def test_pooled_tokens_lie_on_the_pooled_grid() -> None:
    one = features(torch.ones(1, 8))
    one.tokens.zero_()
    one.tokens[0, 42:, 0] = 9.0  # the last 2 × 2 × 2 block of the 4 × 4 × 4 grid among them, and more of its side
    kept = kept_tokens(one, torch.randn(1, 8, 16), 2, vol3d.SpatialPoolingProjector(8, 16))
    assert kept.tolist() == [[6, 7]]


def test_what_is_left_keeps_its_position_and_rows_stay_one_by_one() -> None:
    model = volume_lm(projector=partial(vol3d.MLPProjector))
    one = model.encode(torch.randn(2, 1, 8, 8, 8))
    seen = []
    inner = model.language.causal_lm.get_decoder()
    inner.register_forward_pre_hook(lambda *call: seen.append(call[2]["position_ids"]), with_kwargs=True)
    together = model.generate(one, PROMPTS, max_new_tokens=8, keep=0.5)
    kept = kept_tokens(one, model.project(one), 0.5)
    start = len(model.language.encode("<bos>"))
    row = seen[0][1].tolist()
    assert row[start : start + 4] == (kept[1] + start).tolist()
    assert row[start + 4] == start + 8
    assert model.generate(one, PROMPTS, max_new_tokens=8, keep=0.5, lean=False) == together
    assert [model.generate(one[[i]], [PROMPTS[i]], max_new_tokens=8, keep=0.5)[0] for i in range(2)] == together
    many = model.generate_many(one, ["<volume>Report of the liver", "<volume>Report"], max_new_tokens=8, keep=0.5)
    assert [texts[1] for texts in many] == model.generate(one, ["<volume>Report"] * 2, max_new_tokens=8, keep=0.5)


def test_keeping_all_is_keeping_none_back() -> None:
    model = volume_lm()
    one = model.encode(torch.randn(2, 1, 8, 8, 8))
    assert model.generate(one, PROMPTS, max_new_tokens=8, keep=4) == model.generate(one, PROMPTS, max_new_tokens=8)
