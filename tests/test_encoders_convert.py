"""Peers' weights: read safely, found under any prefix, turned once, and equal to the peer's own model."""

import json
import pickle
from pathlib import Path
from typing import Any

import doc_tables
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from monai.networks.nets import ViT

import vol3d
from vol3d.encoders import convert
from vol3d.model.interfaces import Features
from vol3d.model.projectors import LinearProjector, RadFMProjector

# M3D's shape, small: patches (4, 4, 2) of a (16, 16, 6) image in x, y, z.
SIZES: dict[str, Any] = {
    "patch_size": (4, 4, 2), "grid_size": (4, 4, 3), "embed_dim": 24, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0,
}  # fmt: skip


def monai_vit(*, cls_token: bool = True) -> ViT:
    """MONAI reads (D, H, W) = our (z, y, x)."""
    vit = ViT(1, (6, 16, 16), (2, 4, 4), 24, 48, 2, 4, proj_type="perceptron", pos_embed_type="learnable",
              classification=cls_token).eval()  # fmt: skip
    vit.load_state_dict({key: torch.randn_like(value) * 0.2 for key, value in vit.state_dict().items()})
    return vit


def monai_tokens(vit: ViT, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the peer's last norm gives, in our order; the CLS token."""
    tokens = vit.patch_embedding(rearrange(image, "b c x y z -> b c z y x"))
    if hasattr(vit, "cls_token"):
        tokens = torch.cat([vit.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
    for block in vit.blocks:
        tokens = block(tokens)
    tokens = vit.norm(tokens)
    cls = tokens[:, 0] if hasattr(vit, "cls_token") else None
    return rearrange(tokens[:, tokens.shape[1] - 48 :], "b (z y x) c -> b (x y z) c", z=3, y=4, x=4), cls


def published(vit: ViT) -> dict[str, torch.Tensor]:
    """As the published files have it: without what newer MONAI adds to every block."""
    state = vit.state_dict()
    return {key: value for key, value in state.items() if "cross_attn" not in key and "classification" not in key}


@pytest.mark.parametrize("prefix", ["", "vision_encoder."])
def test_m3d_clip_equals_monai(tmp_path: Path, prefix: str) -> None:
    vit = monai_vit()
    state = {prefix + key: value for key, value in published(vit).items()}
    if prefix:
        state |= {"language_encoder.embeddings.weight": torch.ones(2), "logit_scale": torch.ones(())}
    torch.save(state, tmp_path / "m3d.bin")
    done = convert.convert("m3d-clip", tmp_path / "m3d.bin", tmp_path / "out", **SIZES)
    encoder = vol3d.encoders.create("m3d-clip", weights=done.folder, **SIZES).eval()
    image = torch.randn(2, 1, 16, 16, 6)
    features = encoder(image)
    tokens, cls = monai_tokens(vit, image)
    torch.testing.assert_close(features.tokens, tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.pooled, cls, rtol=1e-5, atol=1e-5)
    doc_tables.parity("m3d-clip", "m3d-clip", "MONAI's ViT", "tokens", features.tokens, tokens)
    report = json.loads((done.folder / "convert.json").read_text())
    assert (report["encoder"], report["preset"], report["projector"]) == ("m3d-clip", "m3d", None)


@pytest.mark.parametrize("prefix", ["model.encoder.", "model.image_encoder.", "image_encoder."])
def test_segvol_equals_monai(prefix: str) -> None:
    vit = monai_vit(cls_token=False)
    encoder = vol3d.encoders.create("segvol", **SIZES).eval()
    foreign = {prefix + key: value for key, value in vit.state_dict().items()}  # with newer MONAI's extra keys
    state, left_behind = convert.translate("segvol", foreign, encoder)
    encoder.load_state_dict(state)
    assert left_behind == [f"blocks.{n}.norm_cross_attn.{part}" for n in (0, 1) for part in ("bias", "weight")]
    image = torch.randn(1, 1, 16, 16, 6)
    tokens, _ = monai_tokens(vit, image)
    torch.testing.assert_close(encoder(image).tokens, tokens, rtol=1e-5, atol=1e-5)
    doc_tables.parity("segvol", "segvol", "MONAI's ViT", "tokens", encoder(image).tokens, tokens)


def test_m3d_lamed_brings_its_projector_and_reads_shards(tmp_path: Path) -> None:
    """The LaMed files also hold a second ViT (segmentation) and an LLM; the projector is M3D's, to the token."""
    vit, folder = monai_vit(), tmp_path / "hf"
    state = {f"model.vision_tower.vision_tower.{key}": value for key, value in published(vit).items()}
    state |= {f"model.seg_module.image_encoder.{key}": value * 2 for key, value in published(vit).items()}
    first, second = torch.nn.Linear(24, 32), torch.nn.Linear(32, 32)
    state |= {f"model.mm_projector.projector.0.{key}": value for key, value in first.state_dict().items()}
    state |= {f"model.mm_projector.projector.2.{key}": value for key, value in second.state_dict().items()}
    state["model.embed_tokens.weight"] = torch.ones(3, 32)
    folder.mkdir()
    keys = sorted(state)
    halves = {"a.bin": keys[::2], "b.bin": keys[1::2]}
    for name, half in halves.items():
        torch.save({key: state[key].bfloat16() for key in half}, folder / name)
    index = {"weight_map": {key: name for name, half in halves.items() for key in half}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    sizes = SIZES | {"patch_size": (4, 4, 3), "grid_size": (4, 4, 2)}
    with pytest.raises(ValueError, match=r"48 learned positions, the encoder's grid_size is \(4, 4, 2\)"):
        convert.convert("m3d-lamed", folder, tmp_path / "out", **sizes)
    done = convert.convert("m3d-lamed", folder, tmp_path / "out", **SIZES)
    assert done.projector == "vol3d.SpatialPoolingProjector(order='zyx')"
    encoder = vol3d.encoders.create(done.encoder, weights=done.folder, **SIZES).eval()
    vit.load_state_dict({key: value.bfloat16().float() for key, value in vit.state_dict().items()})
    image = torch.randn(1, 1, 16, 16, 6)
    given, wanted = encoder(image).tokens, monai_tokens(vit, image)[0]
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)
    doc_tables.parity("m3d-lamed", "m3d-clip", "MONAI's ViT", "tokens", given, wanted)
    from safetensors.torch import load_file

    projector = vol3d.SpatialPoolingProjector(24, 32, pooling=(2, 2, 3), order="zyx").eval()
    projector.load_state_dict(load_file(done.folder / "projector.safetensors"))
    tokens = torch.randn(1, 48, 24)  # x, y, z order of a 4 × 4 × 3 grid
    grid = rearrange(tokens, "b (x y z) c -> b c z y x", x=4, y=4, z=3)
    pooled = rearrange(F.avg_pool3d(grid, (3, 2, 2)), "b c z y x -> b (z y x) c")
    loaded = [{key: value.bfloat16().float() for key, value in m.state_dict().items()} for m in (first, second)]
    hidden = F.gelu(F.linear(pooled, loaded[0]["weight"], loaded[0]["bias"]))
    expected = F.linear(hidden, loaded[1]["weight"], loaded[1]["bias"])
    torch.testing.assert_close(projector(Features(tokens, (4, 4, 3))), expected, rtol=1e-5, atol=1e-5)


RADFM: dict[str, Any] = {
    "patch_size": (4, 8, 2), "grid_size": (4, 8, 8), "embed_dim": 48, "depth": 2, "num_heads": 2, "head_dim": 8,
    "mlp_ratio": 2.0,
}  # fmt: skip


def radfm_weights() -> dict[str, torch.Tensor]:
    """RadFM's keys; H, W, D are y, x, z, so the row table is y's."""
    rand = lambda *shape: torch.randn(*shape) * 0.2  # noqa: E731
    patch = 8 * 4 * 2 * 3
    state = {
        "to_patch_embedding.1.weight": rand(patch) + 1, "to_patch_embedding.1.bias": rand(patch),
        "to_patch_embedding.2.weight": rand(48, patch), "to_patch_embedding.2.bias": rand(48),
        "to_patch_embedding.3.weight": rand(48) + 1, "to_patch_embedding.3.bias": rand(48),
        "pos_embedding.row_embed.weight": rand(8, 16), "pos_embedding.col_embed.weight": rand(4, 16),
        "pos_embedding.dep_embed.weight": rand(8, 16),
    }  # fmt: skip
    for layer in range(2):
        at = f"transformer.layers.{layer}"
        for index in (0, 1):
            state |= {f"{at}.{index}.norm.weight": rand(48) + 1, f"{at}.{index}.norm.bias": rand(48)}
        state |= {f"{at}.0.fn.to_qkv.weight": rand(48, 48), f"{at}.0.fn.to_out.0.weight": rand(48, 16)}
        state |= {f"{at}.0.fn.to_out.0.bias": rand(48)}
        state |= {f"{at}.1.fn.net.0.weight": rand(96, 48), f"{at}.1.fn.net.0.bias": rand(96)}
        state |= {f"{at}.1.fn.net.3.weight": rand(48, 96), f"{at}.1.fn.net.3.bias": rand(48)}
    return state


def radfm_by_hand(state: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """(batch, 3, h, w, d) → tokens (batch, h, w, d, 48)."""

    def norm(tokens: torch.Tensor, key: str) -> torch.Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], state[f"{key}.weight"], state[f"{key}.bias"])

    tokens = rearrange(image, "b c (h p) (w q) (d r) -> b h w d (p q r c)", p=8, q=4, r=2)
    tokens = norm(tokens, "to_patch_embedding.1") @ state["to_patch_embedding.2.weight"].T
    tokens = norm(tokens + state["to_patch_embedding.2.bias"], "to_patch_embedding.3")
    b, h, w, d, _ = tokens.shape
    places = []
    for size, name in ((h, "row"), (w, "col"), (d, "dep")):
        table = state[f"pos_embedding.{name}_embed.weight"]
        places.append(table[[(i + 1) * (len(table) // size) - 1 for i in range(size)]])
    rows, columns, depths = places
    position = torch.cat([rows[:, None, None].expand(h, w, d, -1), columns[None, :, None].expand(h, w, d, -1),
                          depths[None, None].expand(h, w, d, -1)], -1)  # fmt: skip
    tokens = (tokens + position).reshape(b, h * w * d, -1)
    for layer in range(2):
        at = f"transformer.layers.{layer}"
        query, key, value = (norm(tokens, f"{at}.0.norm") @ state[f"{at}.0.fn.to_qkv.weight"].T).chunk(3, -1)
        query, key, value = (rearrange(t, "b n (h d) -> b h n d", h=2) for t in (query, key, value))
        weights = (query @ key.transpose(-1, -2) * 8**-0.5).softmax(-1)
        mixed = rearrange(weights @ value, "b h n d -> b n (h d)")
        tokens = tokens + mixed @ state[f"{at}.0.fn.to_out.0.weight"].T + state[f"{at}.0.fn.to_out.0.bias"]
        hidden = norm(tokens, f"{at}.1.norm") @ state[f"{at}.1.fn.net.0.weight"].T + state[f"{at}.1.fn.net.0.bias"]
        tokens = tokens + F.gelu(hidden) @ state[f"{at}.1.fn.net.3.weight"].T + state[f"{at}.1.fn.net.3.bias"]
    return tokens.reshape(b, h, w, d, -1)


def test_radfm_equals_its_formulas(tmp_path: Path) -> None:
    foreign = radfm_weights()
    torch.save({"module.embedding_layer.vision_encoder." + key: value for key, value in foreign.items()}
               | {"module.lang_model.weight": torch.ones(2), "module.embedding_layer.weight": torch.ones(2)},
               tmp_path / "radfm.pth")  # fmt: skip
    done = convert.convert("radfm", tmp_path / "radfm.pth", tmp_path / "out", **RADFM)
    encoder = vol3d.encoders.create("radfm", weights=done.folder, **RADFM).eval()
    assert done.left_behind == ()
    image = torch.rand(2, 1, 16, 16, 8)  # grid (4, 2, 4): each axis reads its table at another step
    expected = radfm_by_hand(foreign, rearrange(image, "b c x y z -> b c y x z").repeat(1, 3, 1, 1, 1))
    features = encoder(image)
    expected = rearrange(expected, "b y x z c -> b (x y z) c")
    torch.testing.assert_close(features.tokens, expected, rtol=1e-4, atol=2e-5)
    doc_tables.parity("radfm", "radfm", "its formulas", "tokens", features.tokens, expected)
    three = vol3d.encoders.create("radfm", weights=done.folder, **RADFM, in_channels=3).eval()
    torch.testing.assert_close(three(image.repeat(1, 3, 1, 1, 1)).tokens, features.tokens, rtol=1e-4, atol=2e-5)


def test_radfm_resampler_equals_its_formulas() -> None:
    rand = lambda *shape: torch.randn(*shape) * 0.2  # noqa: E731
    state = {"perceiver.latents": rand(4, 24), "perceiver.norm.weight": rand(24), "perceiver.norm.bias": rand(24),
             "fc.weight": rand(32, 24), "fc.bias": rand(32)}  # fmt: skip
    for layer in range(2):
        at = f"perceiver.layers.{layer}"
        for name in ("0.norm_media", "0.norm_latents", "1.0"):
            state |= {f"{at}.{name}.weight": rand(24) + 1, f"{at}.{name}.bias": rand(24)}
        state |= {f"{at}.0.to_q.weight": rand(128, 24), f"{at}.0.to_kv.weight": rand(256, 24)}
        state |= {f"{at}.0.to_out.weight": rand(24, 128), f"{at}.1.1.weight": rand(96, 24)}
        state |= {f"{at}.1.3.weight": rand(24, 96)}
    projector = RadFMProjector(24, 32, num_latents=4, depth=2, num_heads=2).eval()
    peer = convert.find("radfm")
    projector.load_state_dict(convert.apply(peer.projector, {f"embedding_layer.{k}": v for k, v in state.items()}))

    def norm(tokens: torch.Tensor, key: str) -> torch.Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], state[f"{key}.weight"], state[f"{key}.bias"])

    media = torch.randn(2, 6, 24)
    latents = state["perceiver.latents"].expand(2, -1, -1)
    for layer in range(2):
        at = f"perceiver.layers.{layer}"
        normed = norm(latents, f"{at}.0.norm_latents")
        both = torch.cat([norm(media, f"{at}.0.norm_media"), normed], 1)
        query = rearrange(normed @ state[f"{at}.0.to_q.weight"].T, "b n (h d) -> b h n d", h=2) * 64**-0.5
        key, value = (both @ state[f"{at}.0.to_kv.weight"].T).chunk(2, -1)
        key, value = (rearrange(t, "b n (h d) -> b h n d", h=2) for t in (key, value))
        mixed = rearrange((query @ key.transpose(-1, -2)).softmax(-1) @ value, "b h n d -> b n (h d)")
        latents = latents + mixed @ state[f"{at}.0.to_out.weight"].T
        hidden = F.gelu(norm(latents, f"{at}.1.0") @ state[f"{at}.1.1.weight"].T)
        latents = latents + hidden @ state[f"{at}.1.3.weight"].T
    expected = norm(latents, "perceiver.norm") @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(projector(Features(media, (1, 2, 3))), expected, rtol=1e-4, atol=1e-5)


def test_published_sizes() -> None:
    """Counts of the published files, and each table from the layers it is made of."""
    with torch.device("meta"):
        count = {name: vol3d.encoders.create(name) for name in ("m3d-clip", "segvol", "radfm", "ct-clip")}
        resampler = RadFMProjector(768, 5120)
    sizes = {name: (sum(p.numel() for p in e.parameters()), len(e.state_dict())) for name, e in count.items()}
    assert sizes["m3d-clip"] == (87_389_184, 138)
    assert sizes["segvol"] == (87_389_184 - 768, 137)
    patch = 32 * 32 * 4 * 3
    block = 2 * 1536 + 768 * 3 * 512 + 512 * 768 + 768 + 768 * 2048 + 2048 + 2048 * 768 + 768
    assert sizes["radfm"][0] == 2 * patch + patch * 768 + 768 + 1536 + (16 + 16 + 128) * 256 + 12 * block
    layer = (27 + 1) * 512 + 512 + 512 * 3 * 256 + 64 + 256 * 512 + 1024 + 512 * 2 * 1365 + 1365 * 512
    bias = 3 * 512 + 513 * 512 + 513 * 8
    stem = 2 * 4000 + 4001 * 512 + 1024
    assert sizes["ct-clip"][0] == stem + bias + 8 * layer + 2 * 512 + 24 * 24 * 512 * 512
    assert count["ct-clip"].grid_size(vol3d.Grid.preset("ct-clip").shape) == (24, 24, 24)
    assert sum(p.numel() for p in resampler.parameters()) - 769 * 5120 == 37_802_496


def test_merlin_report_renames_the_trunk_and_brings_its_adapter(tmp_path: Path) -> None:
    sizes = {"layers": (1, 1, 1, 1), "width": 8}
    encoder = vol3d.encoders.create("merlin-report", **sizes)
    back = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    state = {}
    for key, value in encoder.state_dict().items():
        first, _, rest = key.partition(".")
        turned = value.permute(0, 1, 4, 2, 3) if value.ndim == 5 else value
        state[f"encode_image.vision_model.features.{back[first]}.{rest}"] = turned
    state |= {"adapter.linear2.weight": torch.randn(16, 256), "adapter.linear2.bias": torch.randn(16)}
    state["decode_text.text_decoder.base_model.model.lm_head.weight"] = torch.ones(2)
    torch.save(state, tmp_path / "report.pt")
    done = convert.convert("merlin-report", tmp_path / "report.pt", tmp_path / "out", **sizes)
    again = vol3d.encoders.create("merlin-report", weights=done.folder, **sizes)
    torch.testing.assert_close(again.state_dict(), encoder.state_dict())
    from safetensors.torch import load_file

    projector = LinearProjector(256, 16, order="zxy")
    projector.load_state_dict(load_file(done.folder / "projector.safetensors"))
    tokens = torch.randn(1, 2 * 3 * 4, 256)
    theirs = rearrange(tokens, "b (x y z) c -> b (z x y) c", x=2, y=3, z=4) @ state["adapter.linear2.weight"].T
    given = projector(Features(tokens, (2, 3, 4)))
    torch.testing.assert_close(given, theirs + state["adapter.linear2.bias"], rtol=1e-5, atol=1e-5)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def test_a_pickle_that_wants_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "args": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil.pt wants to run Python code .*print.*safetensors"):
        convert.convert("merlin", tmp_path / "evil.pt", tmp_path / "out")
    assert "code ran" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"text.pt"):
        convert.convert("merlin", tmp_path / "text.pt", tmp_path / "out")
    (tmp_path / "list.pt").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"list.pt"):
        convert.convert("merlin", tmp_path / "list.pt", tmp_path / "out")
    torch.save([torch.ones(1)], tmp_path / "tensors.pt")
    with pytest.raises(ValueError, match=r"tensors.pt holds a list, not tensors by name"):
        convert.convert("merlin", tmp_path / "tensors.pt", tmp_path / "out")
    with pytest.raises(ValueError, match=r"absent.pt is not there: give the checkpoint's file, a folder"):
        convert.convert("merlin", tmp_path / "absent.pt", tmp_path / "out")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"holds no model.safetensors, pytorch_model.bin"):
        convert.convert("merlin", tmp_path / "folder", tmp_path / "out")


def test_wrong_weights_are_listed(tmp_path: Path) -> None:
    foreign = published(monai_vit())
    encoder = vol3d.encoders.create("m3d-clip", **SIZES)
    with pytest.raises(ValueError, match=r"no rules to convert 'm4d'; there are ct-clip, m3d-clip"):
        convert.translate("m4d", foreign, encoder)
    with pytest.raises(ValueError, match=r"has no merlin encoder: none of 'encode_image.i3_resnet.conv1.weight'"):
        convert.translate("merlin", foreign, encoder)
    less = {key: value for key, value in foreign.items() if key != "norm.weight"} | {"blocks.9.new": torch.ones(1)}
    with pytest.raises(
        ValueError, match=r"1 of \d+ tensors missing \['norm.weight'\], 1 unexpected \['blocks.9.new'\]"
    ):
        convert.translate("m3d-clip", less, encoder)
    wide = foreign | {"norm.weight": torch.ones(25)}
    with pytest.raises(ValueError, match=r"norm.weight comes as \(25,\), m3d-clip has \(24,\)"):
        convert.translate("m3d-clip", wide, encoder)


def test_another_folder_is_never_replaced(tmp_path: Path) -> None:
    torch.save(published(monai_vit()), tmp_path / "m3d.bin")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match=r"mine exists and is not an earlier conversion"):
        convert.convert("m3d-clip", tmp_path / "m3d.bin", tmp_path / "mine", **SIZES)
    for _ in range(2):  # an earlier conversion is
        convert.convert("m3d-clip", tmp_path / "m3d.bin", tmp_path / "out", **SIZES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m3d.bin", "mine", "out"]


def test_colleagues_may_read_the_weights_as_any_new_file(tmp_path: Path) -> None:
    torch.save(published(monai_vit()), tmp_path / "m3d.bin")
    convert.convert("m3d-clip", tmp_path / "m3d.bin", tmp_path / "out", **SIZES)
    written = [path.stat().st_mode for path in (tmp_path / "out").iterdir()]
    (tmp_path / "new").touch()
    assert set(written) == {(tmp_path / "new").stat().st_mode}
