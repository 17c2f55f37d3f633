"""Slice, scan and study attention, and an ensemble of encoders."""

from typing import Any

import doc_tables
import pytest
import torch

import vol3d
from vol3d.encoders.vit3d import _look

SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": (4, 4, 2), "head_dim": 12}


def vit(*attention: str, **overrides: Any) -> vol3d.encoders.ViT3D:
    return vol3d.encoders.ViT3D(**(SMALL | overrides), attention=attention or None).eval()


def moved(encoder: vol3d.encoders.ViT3D, image: torch.Tensor, changed: torch.Tensor, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        difference = encoder(image, **options).tokens - encoder(changed, **options).tokens
    return difference.abs().amax(-1)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_slice_attention_stays_within_a_slice(positions: str) -> None:
    image = torch.randn(1, 1, 16, 8, 8)
    changed = image.clone()
    changed[..., 4:6] += 1  # slice 2 of 4
    narrow = moved(vit("slice", positions=positions), image, changed).reshape(4, 2, 4)
    assert (narrow[..., 2] > 1e-4).all()
    assert not narrow[..., [0, 1, 3]].any()
    assert (moved(vit("slice", "scan", positions=positions), image, changed) > 1e-6).all()


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_one_slice_or_one_scan_is_full_attention(positions: str) -> None:
    """Where the window is all there is, slice, scan and study attention are the same."""
    full = vit("scan", positions=positions)
    image = torch.randn(2, 1, 16, 8, 2)  # one token deep
    for reach in ("slice", "study"):
        narrow = vit(reach, positions=positions)
        narrow.load_state_dict(full.state_dict())
        torch.testing.assert_close(narrow(image).tokens, full(image).tokens, rtol=1e-5, atol=1e-6)


def test_rotary_attention_sees_differences_of_place_only() -> None:
    """Turning every token by the angles of a shifted grid moves nothing."""
    encoder = vit("scan", positions="rotary", embed_dim=24)
    tokens, angles = torch.randn(1, 32, 24), encoder.rotary((4, 2, 4), False, torch.device("cpu"))
    shifted = encoder.rotary((6, 5, 7), False, torch.device("cpu")).reshape(6, 5, 7, -1)[2:, 3:, 3:].reshape(32, -1)
    block = encoder.blocks[0]
    torch.testing.assert_close(block(tokens, shifted), block(tokens, angles), rtol=1e-4, atol=1e-5)
    assert (block(tokens, angles) - block(tokens, None)).abs().max() > 1e-4


def test_each_slice_goes_through_the_block_alone() -> None:
    """With its own rotary angles: within a slice only differences along x and y count, whatever its z."""
    encoder = vit("slice", positions="rotary")
    block, angles = encoder.blocks[0], encoder.rotary((4, 2, 4), False, torch.device("cpu"))
    tokens = torch.randn(2, 32, 24)
    given = _look(block, tokens, angles, "slice", 4, 1).reshape(2, 8, 4, 24)
    for z in range(4):
        alone = block(tokens.reshape(2, 8, 4, 24)[:, :, z], angles.reshape(8, 4, -1)[:, z])
        torch.testing.assert_close(given[:, :, z], alone, rtol=1e-4, atol=1e-5)


def test_cls_token_is_the_mean_over_slices() -> None:
    encoder = vit("slice", cls_token=True)
    tokens = torch.randn(1, 1 + 32, 24)
    given = _look(encoder.blocks[0], tokens, None, "slice", 4, 1)[:, 0]
    grid = tokens[:, 1:].reshape(1, 8, 4, 24)
    each = [encoder.blocks[0](torch.cat([tokens[:, :1], grid[:, :, z]], dim=1))[:, 0] for z in range(4)]
    torch.testing.assert_close(given, torch.stack(each).mean(0), rtol=1e-4, atol=1e-5)


def test_study_attention_crosses_the_scans_of_a_study_and_no_further() -> None:
    encoder = vit("study")
    image = torch.randn(4, 1, 8, 8, 4)  # two studies of two scans
    changed = image.clone()
    changed[0] += 1
    seen = moved(encoder, image, changed, scans=2)
    assert (seen[:2] > 1e-5).all()
    assert not seen[2:].any()
    # Alone, a study is the volume itself.
    torch.testing.assert_close(encoder(image).tokens, _scan_twin(encoder)(image).tokens)


def _scan_twin(encoder: vol3d.encoders.ViT3D) -> vol3d.encoders.ViT3D:
    twin = vit("scan")
    twin.load_state_dict(encoder.state_dict())
    return twin


MEMBERS = [
    {"name": "vit3d-base", **SMALL},
    {"name": "resnet3d-50", "layers": (1, 1, 1, 1), "width": 4},
]


def test_ensemble_listens_to_every_member() -> None:
    ensemble = vol3d.encoders.Ensemble(members=MEMBERS, embed_dim=24, num_heads=2, depth=1).eval()
    assert ensemble.patch_size == (32, 32, 16)
    image = torch.randn(1, 1, 32, 64, 32)
    before = ensemble(image)
    assert before.tokens.shape == (1, 4, 24)
    assert [tuple(scale.shape[2:]) for scale in before.scales][-1] == (2, 4, 4)  # the ResNet's, finest first
    for index in range(2):
        with torch.no_grad():
            ensemble.marks[index] += torch.randn(24)
        after = ensemble(image)
        assert (after.tokens - before.tokens).abs().max() > 1e-5
        before = after


def test_ensemble_refuses_members_that_read_other_channels() -> None:
    with pytest.raises(ValueError, match=r"a member takes 3 channels, the ensemble 1"):
        vol3d.encoders.Ensemble(members=[{"name": "vit3d-base", **SMALL, "in_channels": 3}], embed_dim=24, num_heads=2)
    with pytest.raises(ValueError, match=r"give each member a name"):
        vol3d.encoders.Ensemble(members=[SMALL], embed_dim=24, num_heads=2)


def test_swin_unetr_weights_fit() -> None:
    """A trained SwinUNETR's encoder goes in under its own names, and gives its own maps."""
    from monai.networks.nets import SwinUNETR

    peer = SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(2, 2, 4, 4), window_size=4).eval()
    encoder = vol3d.encoders.SwinEncoder(width=12, depths=(1, 1, 1, 1), num_heads=(2, 2, 4, 4), window_size=4).eval()
    encoder.body.load_state_dict(peer.swinViT.state_dict())
    image = torch.randn(1, 1, 64, 32, 32)
    with torch.no_grad():
        for ours, theirs in zip(encoder(image).scales, peer.swinViT(image, normalize=False), strict=False):
            torch.testing.assert_close(ours, theirs)
    doc_tables.parity("swin-unetr", "swin-unetr", "MONAI's SwinUNETR", "finer maps", ours, theirs)
