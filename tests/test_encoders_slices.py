"""Encoders on timm: SliceEncoder, and SPECTRE through its package. Most runs where timm is: tests/ci_timm/run.sh."""

import sys
from typing import Any

import doc_tables
import pytest
import torch

import vol3d
from vol3d.encoders.resnet3d import inflate

VIT: dict[str, Any] = {
    "slab": 2, "depth": 1, "num_heads": 2,
    "backbone_options": {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32},
}  # fmt: skip


def test_absent_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"SliceEncoder needs timm .*pip install 'vol3d\[timm\]'"):
        vol3d.encoders.create("slice-vit-small")


def test_a_broken_timm_names_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(ImportError, match=r"torchvision::nms does not exist.*torchvision that matches your torch"):
        vol3d.encoders.create("slice-vit-small")


@pytest.mark.parametrize(
    ("backbone", "overrides", "patch"),
    [
        ("vit_small_patch16_224", VIT, (8, 8, 2)),
        ("resnet18", {"slab": 1, "depth": 1, "num_heads": 4}, (32, 32, 1)),
        ("convnext_atto", {"slab": 3, "depth": 1, "num_heads": 4}, (32, 32, 3)),
    ],
)
def test_any_backbone(backbone: str, overrides: dict[str, Any], patch: tuple[int, int, int]) -> None:
    pytest.importorskip("timm", reason="timm is not installed: tests/ci_timm/run.sh runs this in its own place")
    encoder = vol3d.encoders.SliceEncoder(backbone=backbone, **overrides).eval()
    assert encoder.patch_size == patch
    image = torch.randn(1, 1, 64, 32, 6)
    features = encoder(image)
    assert features.grid_size == (64 // patch[0], 32 // patch[1], 6 // patch[2])
    assert features.tokens.shape[-1] == encoder.embed_dim
    changed = image.clone()
    changed[..., :32, :, : patch[2]] += 1  # the first slab: every token of its columns may move, no other may
    moved = (encoder(changed).tokens - features.tokens).abs().amax(-1).reshape(features.grid_size)
    assert (moved[0, 0] > 1e-5).all()


def test_a_backbones_batch_norms_count_a_batch_once_under_checkpointing() -> None:
    pytest.importorskip("timm", reason="timm is not installed: tests/ci_timm/run.sh runs this in its own place")
    plain, twin = (
        vol3d.encoders.SliceEncoder(backbone="resnet18", slab=2, depth=1, num_heads=4, checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    twin.load_state_dict(plain.state_dict())
    image = torch.randn(2, 1, 64, 32, 4)
    for encoder in (plain, twin):
        encoder.train()(image).tokens.square().mean().backward()
    assert plain.backbone.bn1.num_batches_tracked == 1
    torch.testing.assert_close(dict(twin.named_buffers()), dict(plain.named_buffers()))
    for one, two in zip(plain.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)


def test_without_depth_blocks_a_slab_stays_alone() -> None:
    pytest.importorskip("timm", reason="timm is not installed: tests/ci_timm/run.sh runs this in its own place")
    encoder = vol3d.encoders.SliceEncoder(**(VIT | {"depth": 0})).eval()
    image = torch.randn(1, 1, 32, 32, 8)
    changed = image.clone()
    changed[..., 2:4] += 1
    moved = (encoder(changed).tokens - encoder(image).tokens).abs().amax(-1).reshape(4, 4, 4)
    assert moved[..., 1].all()
    assert not moved[..., [0, 2, 3]].any()


@pytest.mark.parametrize(
    ("backbone", "options"),
    [("vit_small_patch16_224", VIT["backbone_options"]), ("resnet18", {}), ("convnext_atto", {})],
)
def test_published_2d_weights_go_into_any_slab(backbone: str, options: dict[str, Any]) -> None:
    """timm's file as it is, made for three colours and with its classifier; equal slices are one gray picture."""
    timm = pytest.importorskip("timm", reason="timm is not installed: tests/ci_timm/run.sh runs this in its own place")
    flat = timm.create_model(backbone, pretrained=False, **options).eval()
    encoder = vol3d.encoders.SliceEncoder(
        backbone=backbone, slab=4, in_channels=2, depth=0, num_heads=1, backbone_options=options
    ).eval()
    encoder.load_backbone(flat.state_dict())
    picture = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        given = encoder._slices(picture.expand(-1, 8, -1, -1))
        known = {"indices": 1, "norm": True, "intermediates_only": True}
        wanted = flat.forward_intermediates(picture.expand(-1, 3, -1, -1), **known)[-1]
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)
    partial = {key: tensor for key, tensor in flat.state_dict().items() if "bias" not in key}
    with pytest.raises(ValueError, match=r"tensors missing .* give the state dict of the timm model"):
        encoder.load_backbone(partial)
    sizes = {key: tensor[:1] for key, tensor in flat.state_dict().items() if tensor.ndim}
    counters = {key: tensor for key, tensor in flat.state_dict().items() if not tensor.ndim}
    with pytest.raises(ValueError, match=r"comes as \(1, .*the backbone has"):
        encoder.load_backbone(sizes | counters)


def test_timms_resnet_inflates() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: tests/ci_timm/run.sh runs this in its own place")
    flat = timm.create_model("resnet50", pretrained=False).eval()
    encoder = vol3d.encoders.create("resnet3d-50").eval()
    encoder.load_state_dict(inflate(flat.state_dict()))
    # A volume whose slices are all alike is, away from the ends, what the flat network sees of one slice.
    image = torch.rand(1, 1, 64, 64, 16)[..., :1].expand(-1, -1, -1, -1, 112)
    with torch.no_grad():
        tokens = encoder(image).tokens.reshape(2, 2, 7, -1)[:, :, 3]
        expected = flat.forward_features(image[..., 0].expand(-1, 3, -1, -1))[0].permute(1, 2, 0)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    doc_tables.parity("resnet3d-50", "resnet3d-50", "timm's resnet50, inflated", "middle slice", tokens, expected)


def test_absent_spectre_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spectre.models", None)
    monkeypatch.setitem(sys.modules, "spectre", None)
    with pytest.raises(ImportError, match=r"SpectreEncoder needs spectre-fm and timm .*pip install 'vol3d\[spectre\]'"):
        vol3d.encoders.create("spectre-large")


def test_spectre_gives_its_own_numbers() -> None:
    """Its published architecture's size, and its own class on its own crops."""
    reason = "spectre-fm is not installed: tests/ci_timm/run.sh runs this in its own place"
    pytest.importorskip("spectre.models", reason=reason)
    from spectre.model import SpectreImageFeatureExtractor
    from spectre.presets import PRESETS
    from spectre.windowing import grid_patch

    with torch.device("meta"):
        large, published = vol3d.encoders.create("spectre-large"), PRESETS["spectre-large"]
        theirs = SpectreImageFeatureExtractor(
            published.backbone, published.backbone_kwargs,
            feature_combiner_name=published.feature_combiner, feature_combiner_kwargs=published.feature_combiner_kwargs,
        )  # fmt: skip
    for ours, peer in ((large.local, theirs.backbone), (large.combiner, theirs.feature_combiner)):
        shapes = {key: value.shape for key, value in ours.state_dict().items()}
        assert shapes == {key: value.shape for key, value in peer.state_dict().items()}
    peer = SpectreImageFeatureExtractor(
        "vit_tiny_patch16_128", published.backbone_kwargs,
        feature_combiner_name="feat_vit_tiny", feature_combiner_kwargs=published.feature_combiner_kwargs,
    ).eval()  # fmt: skip
    width, heads = peer.backbone.embed_dim, peer.backbone.blocks[0].attn.num_heads
    encoder = vol3d.encoders.SpectreEncoder(
        embed_dim=width, num_heads=heads, depth=len(peer.backbone.blocks),
        combiner_depth=len(peer.feature_combiner.blocks),
    ).eval()  # fmt: skip
    encoder.local.load_state_dict(peer.backbone.state_dict())
    encoder.combiner.load_state_dict(peer.feature_combiner.state_dict())
    image = torch.rand(1, 1, 256, 128, 64)
    crops, counts = grid_patch(image[0], (128, 128, 64))
    with torch.no_grad():
        local = peer.extract_backbone_features(crops[None])
        scan = peer.combine_features(local, counts)
        features = encoder(image)
    torch.testing.assert_close(features.pooled, scan[:, 0], rtol=1e-4, atol=1e-5)
    doc_tables.parity("spectre-large", "spectre-large", "spectre-fm", "scan vector", features.pooled, scan[:, 0])
    grid = features.tokens.reshape(16, 8, 8, width)
    torch.testing.assert_close(grid[8:].reshape(512, width), local[0, 1, 1:], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"100 voxels along x, not a multiple of the crop 128"):
        encoder(torch.zeros(1, 1, 100, 128, 64))
