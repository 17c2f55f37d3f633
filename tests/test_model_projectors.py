"""The same checks over every projector, then what is particular to each."""

from functools import partial

import pytest
import torch

import vol3d
from vol3d.model import projectors
from vol3d.model.interfaces import Features, Projector

GRID = (4, 2, 6)
PROJECTORS = {
    "perceiver": partial(vol3d.PerceiverProjector, num_latents=5, num_heads=2),
    "radfm": partial(projectors.RadFMProjector, num_latents=5, depth=2, num_heads=2),
    "spatial": partial(vol3d.SpatialPoolingProjector, pooling=(2, 2, 3)),
    "spatial-zyx": partial(vol3d.SpatialPoolingProjector, pooling=(2, 2, 3), order="zyx"),
    "pixel-shuffle": partial(projectors.PixelShuffleProjector, block=(2, 1, 3)),
    "attention-pooling": partial(projectors.AttentionPoolingProjector, num_queries=7, num_heads=4),
    "mixer": partial(
        projectors.MixerProjector, grid_size=GRID, fine_grid=(8, 4, 6), fine_dim=12,
        num_tokens_fine=(9, 5), num_tokens_coarse=(7, 4),
    ),
    "mlp": vol3d.MLPProjector,
    "linear": projectors.LinearProjector,
}  # fmt: skip


@pytest.fixture(params=PROJECTORS)
def projector(request: pytest.FixtureRequest) -> Projector:
    return PROJECTORS[request.param](24, 32).eval()


def features(batch: int = 2) -> Features:
    return Features(torch.randn(batch, 48, 24), GRID, scales=(torch.randn(batch, 12, 8, 4, 6),))


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


def test_budgets_are_known_before_a_volume_is_read() -> None:
    """256 visual tokens in M3D, CT-CHAT and Med3DVLM, 32 in RadFM, 490 in Merlin."""
    with torch.device("meta"):
        budgets = {
            "m3d": vol3d.SpatialPoolingProjector(768, 32).num_tokens((16, 16, 8)),
            "ct-chat": projectors.AttentionPoolingProjector(512, 32).num_tokens((24, 24, 24)),
            "med3dvlm": projectors.MixerProjector(
                768, 32, grid_size=(4, 4, 2), fine_grid=(8, 8, 4), fine_dim=384
            ).num_tokens((4, 4, 2)),
            "radfm": projectors.RadFMProjector(768, 32).num_tokens((8, 8, 16)),
            "merlin": projectors.LinearProjector(2048, 32).num_tokens((7, 7, 10)),
            "pixel-shuffle": projectors.PixelShuffleProjector(8, 32).num_tokens((16, 16, 8)),
        }
    assert budgets == {"m3d": 256, "ct-chat": 256, "med3dvlm": 256, "radfm": 32, "merlin": 490, "pixel-shuffle": 256}


def test_order_names_the_slowest_axis_first() -> None:
    projector = projectors.LinearProjector(3, 3, order="zxy")
    projector.linear = torch.nn.Identity()
    tokens = torch.arange(2 * 3 * 4 * 3, dtype=torch.float32).reshape(1, 24, 3)
    grid = tokens.reshape(1, 2, 3, 4, 3)
    expected = grid.permute(0, 3, 1, 2, 4).reshape(1, 24, 3)
    torch.testing.assert_close(projector(Features(tokens, (2, 3, 4))), expected)
    with pytest.raises(ValueError, match=r"order 'zz': name x, y and z once each"):
        projectors.LinearProjector(3, 3, order="zz")


def test_pixel_shuffle_keeps_each_tokens_place_in_the_wide_one() -> None:
    projector = projectors.PixelShuffleProjector(3, 8, block=(1, 2, 2))
    projector.mlp = torch.nn.Identity()
    tokens = torch.randn(1, 2 * 2 * 4, 3)
    wide = projector(Features(tokens, (2, 2, 4)))
    grid = tokens.reshape(2, 2, 4, 3)
    torch.testing.assert_close(wide[0, 3], torch.cat([grid[1, 0, 2], grid[1, 0, 3], grid[1, 1, 2], grid[1, 1, 3]]))
    with pytest.raises(ValueError, match=r"3 tokens along y cannot be pooled by 2: give the projector a block that"):
        projector.num_tokens((2, 3, 4))


def test_attention_pooling_equals_the_formula() -> None:
    projector = projectors.AttentionPoolingProjector(24, 32, num_queries=3, num_heads=2).eval()
    one = features(1)
    media, query = projector.norm_media(one.tokens[0]), projector.norm_query(projector.query)
    weights, biases = projector.attention.in_proj_weight.chunk(3), projector.attention.in_proj_bias.chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, media, media), weights, biases, strict=True))
    heads = [(q[:, part] @ k[:, part].T / 12**0.5).softmax(-1) @ v[:, part] for part in (slice(0, 12), slice(12, 24))]
    expected = projector.mlp(projector.norm(projector.attention.out_proj(torch.cat(heads, -1))))
    torch.testing.assert_close(projector(one)[0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"width 24 is not a multiple of num_heads 5"):
        projectors.AttentionPoolingProjector(24, 32, num_heads=5)


def test_mixer_reads_the_finer_map_and_refuses_what_it_was_not_made_for() -> None:
    mixer = PROJECTORS["mixer"](24, 32).eval()
    one = features(1)
    before = mixer(one)
    finer = Features(one.tokens, GRID, scales=(one.scales[0] + torch.randn(1, 12, 1, 1, 1),))
    moved = (mixer(finer) - before).abs().amax(-1)[0]
    assert (moved[:5] > 1e-5).all()  # five fine tokens first
    assert not moved[5:].any()
    with pytest.raises(ValueError, match=r"token grid is \(4, 2, 3\), this projector is made for \(4, 2, 6\)"):
        mixer.num_tokens((4, 2, 3))
    with pytest.raises(ValueError, match=r"reads a finer map beside the tokens, this encoder gives none"):
        mixer(Features(one.tokens, GRID))
    with pytest.raises(ValueError, match=r"finer map is \(4, 4, 6\), this projector is made for \(8, 4, 6\)"):
        mixer(Features(one.tokens, GRID, scales=(torch.randn(1, 12, 4, 4, 6),)))
    with pytest.raises(ValueError, match=r"2 layers for the fine tokens, 1 for the coarse"):
        projectors.MixerProjector(24, 32, grid_size=GRID, fine_grid=GRID, fine_dim=12, num_tokens_coarse=(4,))


def test_perceiver_without_a_linear_map_needs_equal_widths() -> None:
    with pytest.raises(ValueError, match=r"project_media=False needs tokens as wide as the latents: 24 against 32"):
        vol3d.PerceiverProjector(24, 32, project_media=False)
