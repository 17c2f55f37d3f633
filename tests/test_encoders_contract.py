"""The same checks over every encoder found by name, shrunk to a size that runs in seconds."""

import copy

import pytest
import torch

import vol3d
from vol3d.model.interfaces import Encoder

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": (4, 4, 2)}
VARIANTS = {
    "vit3d-tiny": SMALL,
    "vit3d-base": SMALL | {"positions": "rotary", "cls_token": True},
    "vit3d-small": SMALL | {"positions": "learned", "grid_size": (4, 4, 4), "qkv_bias": False},
    "vit3d-large": SMALL,
}


def test_every_name_is_covered() -> None:
    assert set(VARIANTS) == set(vol3d.encoders.names())


@pytest.fixture(params=VARIANTS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return vol3d.encoders.create(request.param, **VARIANTS[request.param]).eval()


def image(shape: tuple[int, int, int] = (16, 16, 8), batch: int = 2, channels: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, *shape)


@pytest.mark.parametrize("shape", [(16, 16, 8), (8, 24, 16)])
def test_any_grid(encoder: Encoder, shape: tuple[int, int, int]) -> None:
    features = encoder(image(shape))
    assert features.grid_size == encoder.grid_size(shape)
    assert features.tokens.shape == (2, torch.tensor(features.grid_size).prod(), encoder.embed_dim)
    assert features.tokens.isfinite().all()


def test_every_parameter_gets_a_gradient(encoder: Encoder) -> None:
    features = encoder.train()(image())
    total = features.tokens.square().sum()
    if features.pooled is not None:
        total = total + features.pooled.square().sum()
    total.backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_eval_is_deterministic_and_batched_equals_one_by_one(encoder: Encoder) -> None:
    images = image(batch=3)
    together = encoder(images).tokens
    torch.testing.assert_close(together, encoder(images).tokens, rtol=0, atol=0)
    apart = torch.cat([encoder(one[None]).tokens for one in images])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_state_dict_round_trip(encoder: Encoder) -> None:
    other = type(encoder)(**encoder.init_args).eval()
    other.load_state_dict(encoder.state_dict())
    images = image()
    torch.testing.assert_close(other(images).tokens, encoder(images).tokens, rtol=0, atol=0)


def test_bf16_stays_close(encoder: Encoder) -> None:
    images = image()
    exact = encoder(images).tokens
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder(images).tokens.float()
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_checkpointing_changes_nothing(encoder: Encoder) -> None:
    twin = copy.deepcopy(encoder)
    twin.checkpointing = True
    images = image()
    for module in (encoder.train(), twin.train()):
        module(images).tokens.square().mean().backward()
    for (name, one), two in zip(encoder.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-7, msg=name)


def test_token_affine_points_at_patch_centres(encoder: Encoder) -> None:
    affine = torch.diag(torch.tensor([-2.0, 2.0, 5.0, 1.0], dtype=torch.float64))[None]
    affine[0, :3, 3] = torch.tensor([100.0, -50.0, 7.0])
    features = encoder(image(batch=1), affine)
    patch = torch.tensor(encoder.patch_size, dtype=torch.float64)
    corner = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) * patch
    voxels = corner + (patch - 1) / 2  # the centre of token (1, 2, 3) in voxel indices
    expected = affine[0, :3, :3] @ voxels + affine[0, :3, 3]
    index = torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close((features.affine[0] @ index)[:3], expected)


def test_tokens_are_in_x_major_order() -> None:
    """A patch that is bright at one place must light up the token of that place."""
    encoder = vol3d.encoders.create("vit3d-base", **(SMALL | {"depth": 0})).eval()
    volume = torch.zeros(1, 1, 16, 16, 8)
    dark = encoder(volume).tokens
    volume[0, 0, 4:8, 8:12, 6:8] = 10  # token (1, 2, 3) of a 4 × 4 × 4 grid
    moved = (encoder(volume).tokens - dark).abs().sum(-1)[0]
    assert moved.argmax() == (1 * 4 + 2) * 4 + 3
    assert (moved > 1e-4).sum() == 1


def test_positions_matter() -> None:
    for positions in ("sincos", "rotary", "learned"):
        encoder = vol3d.encoders.create("vit3d-base", **(SMALL | {"positions": positions, "grid_size": (4, 4, 4)}))
        volume = torch.zeros(1, 1, 16, 16, 8)
        volume[..., :8, :, :] = 1
        # The same patches in mirrored places: without positions the tokens would only be mirrored too.
        tokens = encoder(volume).tokens.reshape(4, 4, 4, -1)
        mirrored = encoder(volume.flip(2)).tokens.reshape(4, 4, 4, -1).flip(0)
        assert (tokens - mirrored).abs().max() > 1e-4, positions


def test_errors_give_both_numbers_and_the_way_out() -> None:
    encoder = vol3d.encoders.create("vit3d-tiny", **SMALL)
    with pytest.raises(ValueError, match=r"3 channels, the encoder takes 1.*in_channels=3"):
        encoder(image(channels=3))
    with pytest.raises(ValueError, match=r"18 voxels along x, not a multiple of the patch size 4"):
        encoder(image((18, 16, 8)))
    with pytest.raises(ValueError, match=r"'resnet' *; there are .*vit3d-tiny"):
        vol3d.encoders.create("resnet")
    with pytest.raises(ValueError, match=r"embed_dim 50 is not a multiple of num_heads 4"):
        vol3d.encoders.ViT3D(embed_dim=50, num_heads=4)
    with pytest.raises(ValueError, match=r"\(6, 6, 6\) must be powers of two"):
        vol3d.encoders.ViT3D(patch_size=(6, 6, 6), stem="conv")


def test_weights_that_do_not_fit_are_listed(tmp_path) -> None:
    from safetensors.torch import save_file

    encoder = vol3d.encoders.create("vit3d-tiny", **SMALL)
    state = encoder.state_dict()
    save_file(state, tmp_path / "right.safetensors")
    again = vol3d.encoders.create("vit3d-tiny", weights=str(tmp_path / "right.safetensors"), **SMALL)
    torch.testing.assert_close(again.state_dict(), state)
    state["foreign.weight"] = state.pop("norm.weight").clone()
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"1 of \d+ tensors missing \['norm.weight'\], 1 unexpected"):
        vol3d.encoders.create("vit3d-tiny", weights=str(tmp_path / "wrong.safetensors"), **SMALL)
