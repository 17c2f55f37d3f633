"""ViT3D against MONAI's ViT with the same random weights (the M3D configuration, small)."""

import torch
from einops import rearrange
from monai.networks.nets import ViT

import vol3d


def test_equals_monai_vit_with_the_same_weights() -> None:
    """MONAI reads (D, H, W) = our (z, y, x), so the patch kernel and the tokens are turned here, once."""
    ours = vol3d.encoders.ViT3D(
        patch_size=(4, 4, 2), grid_size=(4, 4, 3), embed_dim=24, depth=2, num_heads=4, mlp_ratio=2.0,
        positions="learned", cls_token=True, qkv_bias=False,
    ).eval()  # fmt: skip
    peer = ViT(
        1, (6, 16, 16), (2, 4, 4), 24, 48, 2, 4, proj_type="perceptron", pos_embed_type="learnable",
        classification=True, save_attn=True,
    ).eval()  # fmt: skip
    state = {k: torch.randn_like(v) * 0.2 for k, v in peer.state_dict().items()}
    peer.load_state_dict(state)
    ours.load_state_dict(_from_monai(state))
    image = torch.randn(2, 1, 16, 16, 6)
    features = ours(image)
    tokens = peer.norm(_before_head(peer, rearrange(image, "b c x y z -> b c z y x")))
    expected = rearrange(tokens[:, 1:], "b (z y x) c -> b (x y z) c", z=3, y=4, x=4)
    torch.testing.assert_close(features.tokens, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.pooled, tokens[:, 0], rtol=1e-5, atol=1e-5)
    looks = torch.stack([block.attn.att_mat.mean(dim=1)[:, 0, 1:] for block in peer.blocks], dim=1)
    expected = rearrange(looks, "b ends (z y x) -> b ends (x y z)", z=3, y=4, x=4)
    torch.testing.assert_close(features.attention, expected, rtol=1e-4, atol=1e-6)
    assert ours.train()(image).attention is None


def test_without_a_cls_token_the_mean_query_looks() -> None:
    encoder = vol3d.encoders.ViT3D(patch_size=(4, 4, 2), embed_dim=24, depth=3, num_heads=2, qkv_bias=True).eval()
    seen: list[torch.Tensor] = []
    for block in encoder.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    attention = encoder(torch.randn(2, 1, 16, 8, 6)).attention
    for place, number in ((0, 0), (1, 2)):
        block = encoder.blocks[number]
        query, key, _ = rearrange(
            block.qkv(block.norm1(seen[number])), "b n (three h d) -> three b h n d", three=3, h=2
        )  # fmt: skip
        logits = query.mean(dim=2, keepdim=True) @ key.transpose(2, 3) / 12**0.5
        torch.testing.assert_close(attention[:, place], logits.softmax(dim=-1).mean(dim=1)[:, 0], rtol=1e-4, atol=1e-6)


def _before_head(peer: ViT, image: torch.Tensor) -> torch.Tensor:
    tokens = peer.patch_embedding(image)
    tokens = torch.cat([peer.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
    for block in peer.blocks:
        tokens = block(tokens)
    return tokens


def _from_monai(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    kernel = state["patch_embedding.patch_embeddings.1.weight"]
    positions = state["patch_embedding.position_embeddings"]
    out = {
        "cls_token": state["cls_token"],
        "position_embeddings": rearrange(positions, "1 (z y x) c -> 1 (x y z) c", z=3, y=4, x=4),
        "stem.projection.weight": rearrange(kernel, "o (pz py px c) -> o c px py pz", pz=2, py=4, px=4),
        "stem.projection.bias": state["patch_embedding.patch_embeddings.1.bias"],
        "norm.weight": state["norm.weight"],
        "norm.bias": state["norm.bias"],
    }
    names = {"attn.qkv": "qkv", "attn.out_proj": "out", "mlp.linear1": "mlp.0", "mlp.linear2": "mlp.2"}
    for block in range(2):
        for key, value in state.items():
            if key.startswith(f"blocks.{block}.") and "cross_attn" not in key:
                inner = key.removeprefix(f"blocks.{block}.")
                module, _, kind = inner.rpartition(".")
                out[f"blocks.{block}.{names.get(module, module)}.{kind}"] = value
    return out


def test_learned_positions_are_interpolated_to_another_grid() -> None:
    encoder = vol3d.encoders.ViT3D(
        patch_size=(4, 4, 2), grid_size=(4, 4, 4), embed_dim=24, depth=0, num_heads=4, positions="learned"
    )
    with torch.no_grad():
        ramp = torch.arange(4.0)[:, None, None].expand(4, 4, 4).reshape(1, 64, 1)
        encoder.position_embeddings.copy_(ramp.expand(1, 64, 24))
    finer = encoder._learned_positions((8, 4, 4)).reshape(8, 4, 4, 24)
    # Trilinear without aligned corners: half-way positions between the four, flat at the rim.
    expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
    torch.testing.assert_close(finer[:, 0, 0, 0], expected)
