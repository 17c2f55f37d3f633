"""The same checks over every projector, then what is particular to each."""

from functools import partial

import pytest
import torch

import vol3d
from vol3d.model.interfaces import Features, Projector

GRID = (4, 2, 6)
PROJECTORS = {
    "perceiver": partial(vol3d.PerceiverProjector, num_latents=5, num_heads=2),
    "spatial": partial(vol3d.SpatialPoolingProjector, pooling=(2, 2, 3)),
    "mlp": vol3d.MLPProjector,
}


@pytest.fixture(params=PROJECTORS)
def projector(request: pytest.FixtureRequest) -> Projector:
    return PROJECTORS[request.param](24, 32).eval()


def features(batch: int = 2) -> Features:
    return Features(torch.randn(batch, 48, 24), GRID)


def test_gives_as_many_tokens_as_it_says(projector: Projector) -> None:
    assert projector(features()).shape == (2, projector.num_tokens(GRID), 32)


def test_every_parameter_gets_a_gradient(projector: Projector) -> None:
    projector(features()).square().sum().backward()
    assert [name for name, p in projector.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_batched_equals_one_by_one(projector: Projector) -> None:
    both = features(3)
    apart = torch.cat([projector(both[[row]]) for row in range(3)])
    torch.testing.assert_close(projector(both), apart, rtol=1e-4, atol=1e-5)


def test_built_again_from_its_recorded_arguments(projector: Projector) -> None:
    again = type(projector)(**projector.init_args).eval()
    again.load_state_dict(projector.state_dict())
    one = features()
    torch.testing.assert_close(again(one), projector(one), rtol=0, atol=0)


def test_perceiver_sees_where_a_token_lies() -> None:
    projector = PROJECTORS["perceiver"](24, 32).eval()
    one = features(1)
    moved = Features(one.tokens.flip(1), GRID)
    assert (projector(one) - projector(moved)).abs().max() > 1e-4


def test_spatial_pooling_averages_blocks_of_the_grid() -> None:
    projector = vol3d.SpatialPoolingProjector(3, 3, pooling=(2, 1, 1))
    projector.mlp = torch.nn.Identity()
    tokens = torch.arange(2 * 2 * 2 * 3, dtype=torch.float32).reshape(1, 8, 3)
    pooled = projector(Features(tokens, (2, 2, 2)))
    # x is the slowest axis: tokens 0–3 have x = 0, tokens 4–7 have x = 1.
    torch.testing.assert_close(pooled, (tokens[:, :4] + tokens[:, 4:]) / 2)


def test_spatial_pooling_refuses_a_grid_it_cannot_divide() -> None:
    projector = vol3d.SpatialPoolingProjector(24, 32, pooling=(2, 2, 4))
    with pytest.raises(ValueError, match=r"6 tokens along z cannot be pooled by 4.*\(4, 2, 6\)"):
        projector(features())


def test_perceiver_refuses_heads_that_do_not_divide_its_width() -> None:
    with pytest.raises(ValueError, match=r"width 30 is not a multiple of num_heads 4"):
        vol3d.PerceiverProjector(24, 30, num_heads=4)
