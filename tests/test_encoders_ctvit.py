"""CTViT against its formulas, written out over (z, x, y) as CT-CLIP computes them, from CT-CLIP's own keys."""

from pathlib import Path
from typing import Any

import doc_tables
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

import vol3d
from vol3d.encoders import convert
from vol3d.encoders.ctvit import nearest

SIZES: dict[str, Any] = {
    "patch_size": (4, 4, 2), "embed_dim": 24, "num_heads": 4, "head_dim": 8, "slice_depth": 2, "column_depth": 2,
    "codebook_size": 16, "latent_grid": (4, 4), "latent_dim": 8,
}  # fmt: skip


def ctclip_weights() -> dict[str, torch.Tensor]:
    rand = lambda *shape: torch.randn(*shape) * 0.3  # noqa: E731
    state = {
        "to_patch_emb.1.weight": rand(32) + 1, "to_patch_emb.1.bias": rand(32),
        "to_patch_emb.2.weight": rand(24, 32), "to_patch_emb.2.bias": rand(24),
        "to_patch_emb.3.weight": rand(24) + 1, "to_patch_emb.3.bias": rand(24),
        "spatial_rel_pos_bias.net.0.0.weight": rand(24, 2), "spatial_rel_pos_bias.net.0.0.bias": rand(24),
        "spatial_rel_pos_bias.net.1.0.weight": rand(24, 24), "spatial_rel_pos_bias.net.1.0.bias": rand(24),
        "spatial_rel_pos_bias.net.2.weight": rand(4, 24), "spatial_rel_pos_bias.net.2.bias": rand(4),
        "vq._codebook.embed": F.normalize(rand(1, 16, 24), dim=-1), "vq._codebook.initted": torch.ones(1),
        "vq._codebook.cluster_size": torch.zeros(1, 16),
        "to_pixels.0.weight": rand(3), "dec_spatial_transformer.norm_out.gamma": rand(24),
        "to_patch_emb_first_frame.1.weight": rand(16),
    }  # fmt: skip
    for stack in ("enc_spatial_transformer", "enc_temporal_transformer"):
        state |= {f"{stack}.norm_out.gamma": rand(24) + 1, f"{stack}.norm_out.beta": torch.zeros(24)}
        for layer in range(2):
            at = f"{stack}.layers.{layer}"
            state |= {f"{at}.0.dsconv.weight": rand(24, 1, 3, 3, 3), f"{at}.0.dsconv.bias": rand(24)}
            state |= {f"{at}.1.norm.gamma": rand(24) + 1, f"{at}.1.norm.beta": torch.zeros(24)}
            state |= {f"{at}.1.context_norm.gamma": rand(24), f"{at}.1.context_norm.beta": torch.zeros(24)}
            state |= {f"{at}.1.null_kv": torch.zeros(4, 0, 8), f"{at}.1.q_scale": rand(8) + 1}
            state |= {f"{at}.1.k_scale": rand(8) + 1, f"{at}.1.to_q.weight": rand(32, 24)}
            state |= {f"{at}.1.to_kv.weight": rand(64, 24), f"{at}.1.to_out.weight": rand(24, 32)}
            state |= {f"{at}.3.0.weight": rand(24) + 1, f"{at}.3.0.bias": rand(24)}
            state |= {f"{at}.3.1.weight": rand(128, 24), f"{at}.3.4.weight": rand(24, 64)}
    return state


def by_hand(state: dict[str, torch.Tensor], video: torch.Tensor) -> torch.Tensor:
    """(batch, 1, t, h, w) → tokens (batch, t, h, w, 24) before the codebook; t = h = w = 4."""
    tokens = rearrange(video, "b c (t p) (h q) (w r) -> b t h w (c p q r)", p=2, q=4, r=4)
    tokens = F.layer_norm(tokens, (32,), state["to_patch_emb.1.weight"], state["to_patch_emb.1.bias"])
    tokens = F.linear(tokens, state["to_patch_emb.2.weight"], state["to_patch_emb.2.bias"])
    tokens = F.layer_norm(tokens, (24,), state["to_patch_emb.3.weight"], state["to_patch_emb.3.bias"])
    cells = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    offsets = (cells[:, None] - cells[None]).to(video.dtype)
    bias = offsets.sign() * (offsets.abs() + 1).log()
    for index in (0, 1):
        net = f"spatial_rel_pos_bias.net.{index}.0"
        bias = F.leaky_relu(F.linear(bias, state[f"{net}.weight"], state[f"{net}.bias"]), 0.1)
    net = "spatial_rel_pos_bias.net.2"
    bias = F.linear(bias, state[f"{net}.weight"], state[f"{net}.bias"]).permute(2, 0, 1)
    rows = rearrange(tokens, "b t h w c -> (b t) (h w) c")
    rows = stack(state, "enc_spatial_transformer", rows, len(video), bias)
    rows = rearrange(rows, "(b t) (h w) c -> (b h w) t c", t=4, h=4)
    rows = stack(state, "enc_temporal_transformer", rows, len(video), torch.zeros(()))
    return rearrange(rows, "(b h w) t c -> b t h w c", h=4, w=4)


def stack(state: dict[str, torch.Tensor], name: str, rows: torch.Tensor, batch: int, bias: Any) -> torch.Tensor:
    for layer in range(2):
        at = f"{name}.layers.{layer}"
        image = rows.reshape(batch, 4, 4, 4, -1).permute(0, 4, 1, 2, 3)  # the peer reads the memory as (t, h, w)
        image = F.pad(image, (1, 1, 1, 1, 2, 0))
        image = F.conv3d(image, state[f"{at}.0.dsconv.weight"], state[f"{at}.0.dsconv.bias"], groups=24)
        rows = rows + image.permute(0, 2, 3, 4, 1).reshape(rows.shape)
        query = F.layer_norm(rows, (24,), state[f"{at}.1.norm.gamma"]) @ state[f"{at}.1.to_q.weight"].T
        key, value = (rows @ state[f"{at}.1.to_kv.weight"].T).chunk(2, -1)
        query, key, value = (rearrange(t, "b n (h d) -> b h n d", h=4) for t in (query, key, value))
        query = F.normalize(query, dim=-1) * state[f"{at}.1.q_scale"]
        key = F.normalize(key, dim=-1) * state[f"{at}.1.k_scale"]
        weights = (8 * query @ key.transpose(-1, -2) + bias).softmax(-1)
        rows = rows + rearrange(weights @ value, "b h n d -> b n (h d)") @ state[f"{at}.1.to_out.weight"].T
        hidden = F.layer_norm(rows, (24,), state[f"{at}.3.0.weight"], state[f"{at}.3.0.bias"])
        hidden, gate = (hidden @ state[f"{at}.3.1.weight"].T).chunk(2, -1)
        rows = rows + (F.gelu(gate) * hidden) @ state[f"{at}.3.4.weight"].T
    return F.layer_norm(rows, (24,), state[f"{name}.norm_out.gamma"])


def test_converted_weights_give_ctclips_numbers(tmp_path: Path) -> None:
    foreign, head = ctclip_weights(), torch.randn(8, 4 * 4 * 24)
    whole = {f"visual_transformer.{key}": value for key, value in foreign.items()}
    whole |= {"to_visual_latent.weight": head, "to_text_latent.weight": torch.ones(2), "temperature": torch.ones(1)}
    torch.save(whole, tmp_path / "ctclip.pt")
    done = convert.convert("ct-clip", tmp_path / "ctclip.pt", tmp_path / "out", **SIZES)
    assert {"to_pixels.0.weight", "dec_spatial_transformer.norm_out.gamma"} <= set(done.left_behind)
    encoder = vol3d.encoders.create("ct-clip", weights=done.folder, **SIZES).eval().double()
    exact = {key: value.double() for key, value in foreign.items()}
    image = torch.rand(2, 1, 16, 16, 8, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        tokens = by_hand(exact, rearrange(image, "b c x y z -> b c z x y"))
        book = exact["vq._codebook.embed"][0]
        quantised = book[(F.normalize(tokens, dim=-1) @ book.T).argmax(-1)]
        features = encoder(image)
        torch.testing.assert_close(features.tokens, rearrange(quantised, "b z x y c -> b (x y z) c"))
        latent = quantised.mean(1).flatten(1) @ head.double().T
        torch.testing.assert_close(encoder.head_outputs(features)["contrastive"], latent)
        doc_tables.parity(
            "ct-clip", "ct-clip", "its formulas", "vector", encoder.head_outputs(features)["contrastive"], latent
        )
        encoder.codebook = None
        torch.testing.assert_close(encoder(image).tokens, rearrange(tokens, "b z x y c -> b (x y z) c"))


def test_codebook_takes_the_most_parallel_entry_and_lets_gradients_pass() -> None:
    book = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    tokens = torch.tensor([[[0.1, 0.09], [-5.0, 4.0], [0.2, 3.0]]])
    torch.testing.assert_close(nearest(tokens, book), book[[0, 2, 1]][None])
    encoder = vol3d.encoders.create("ct-clip", **SIZES)
    encoder(torch.rand(1, 1, 16, 16, 8)).tokens.square().sum().backward()
    assert encoder.stem.projection.weight.grad.any()


def test_head_refuses_another_grid() -> None:
    encoder = vol3d.encoders.create("ct-clip", **SIZES)
    features = encoder(torch.rand(1, 1, 8, 16, 8))
    with pytest.raises(ValueError, match=r"2 × 4 tokens a slice, the contrastive head is made for \(4, 4\)"):
        encoder.head_outputs(features)
