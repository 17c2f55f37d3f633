"""The same checks over every encoder found by name, shrunk to seconds; docs/encoders.md lists who passed which."""

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import doc_tables
import pytest
import torch

import vol3d
from vol3d.model.interfaces import Encoder, Features

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": (4, 4, 2)}
RESNET: dict[str, Any] = {"layers": (1, 1, 1, 1), "width": 8}
GRIDS = {"grid_size": (4, 4, 4)}
# Arguments that make each encoder small, and two image shapes for it.
SHAPES = [(16, 16, 8), (8, 24, 16)]
VARIANTS: dict[str, tuple[dict[str, Any], list[tuple[int, int, int]]]] = {
    "vit3d-tiny": (SMALL, SHAPES),
    "vit3d-base": (SMALL | {"positions": "rotary", "cls_token": True}, SHAPES),
    "vit3d-small": (SMALL | GRIDS | {"positions": "learned", "qkv_bias": False}, SHAPES),
    "vit3d-large": (SMALL, SHAPES),
    "vit3d-hlip": (SMALL | {"attention": ("slice", "scan")}, SHAPES),
    "m3d-clip": (SMALL | GRIDS, SHAPES),
    "segvol": (SMALL | GRIDS, SHAPES),
    "radfm": (SMALL | {"grid_size": (8, 8, 8), "head_dim": 8, "mlp_ratio": 2.0}, SHAPES),
    "resnet3d-50": (RESNET, [(64, 32, 32), (32, 96, 16)]),
    "resnet3d-101": (RESNET | {"in_channels": 3}, [(64, 32, 32), (32, 96, 16)]),
    "merlin-i3d-resnet152": (RESNET | {"phenotypes": 5, "contrastive_dim": 4}, [(64, 32, 32), (32, 96, 16)]),
    "merlin-5yr": (RESNET, [(64, 32, 32), (32, 96, 16)]),
    "merlin-report": (RESNET, [(64, 32, 32), (32, 96, 16)]),
    "ct-clip": (
        {"embed_dim": 48, "num_heads": 4, "head_dim": 8, "slice_depth": 2, "column_depth": 1, "patch_size": (4, 4, 2),
         "codebook_size": None, "latent_grid": (4, 4), "latent_dim": 8},
        SHAPES,
    ),
    "unet3d-base": ({"width": 8, "blocks": (1, 1, 1)}, SHAPES),
    "swin-unetr": (
        {"width": 12, "depths": (2, 1, 1, 1), "num_heads": (2, 2, 4, 4), "window_size": 4},
        [(64, 32, 32), (32, 64, 64)],
    ),
    "ensemble-merlin-vit3d": (
        {"members": ({"name": "unet3d-base", "width": 8, "blocks": (1, 1, 1)}, {"name": "vit3d-base", **SMALL}),
         "patch_size": (4, 4, 4), "embed_dim": 48, "num_heads": 4, "depth": 1},
        SHAPES,
    ),
    "slice-vit-small": (
        {"slab": 2, "depth": 1, "num_heads": 2,
         "backbone_options": {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32}},
        [(32, 32, 8), (16, 48, 4)],
    ),
    "spectre-large": (
        {"crop_size": (16, 16, 8), "patch_size": (4, 4, 2), "embed_dim": 48, "depth": 2, "num_heads": 2,
         "combiner_depth": 1},
        [(16, 32, 8), (16, 16, 24)],
    ),
}  # fmt: skip
NEEDS = {"slice-vit-small": ("timm",), "spectre-large": ("timm", "spectre")}


def test_every_name_is_covered() -> None:
    assert set(VARIANTS) == set(vol3d.encoders.names())


def _parameters() -> list[Any]:
    found = []
    for name in VARIANTS:
        absent = [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
        reason = f"{' and '.join(absent)} not installed: tests/ci_timm/run.sh runs this in its own place"
        found.append(pytest.param(name, marks=[pytest.mark.skipif(bool(absent), reason=reason)]))
    return found


@pytest.fixture(params=_parameters())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


CHECKS = (
    *("any_grid", "every_parameter_gets_a_gradient", "eval_is_deterministic_and_batched_equals_one_by_one"),
    *("state_dict_round_trip", "bf16_stays_close", "checkpointing_changes_nothing", "token_affine", "exports"),
    "compiles_into_one_graph",
)
"""The columns of docs/encoders.md's contract table, in their order."""
PASSED: dict[str, list[str]] = {name: [] for name in VARIANTS}


@pytest.fixture(autouse=True)
def _remember(request: pytest.FixtureRequest) -> Iterator[None]:
    """Which checks each encoder passed in this run."""
    name = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None
    failed = request.session.testsfailed
    yield
    if name is not None and request.session.testsfailed == failed:
        PASSED[name].append(request.function.__name__.removeprefix("test_"))


@pytest.fixture
def encoder(name: str) -> Encoder:
    return vol3d.encoders.create(name, **VARIANTS[name][0]).eval()


def image(name: str, batch: int = 2, which: int = 0) -> torch.Tensor:
    overrides, shapes = VARIANTS[name]
    return torch.randn(batch, overrides.get("in_channels", 1), *shapes[which])


def everything(encoder: Encoder, features: Features) -> list[torch.Tensor]:
    """All that an encoder gives, its heads included."""
    heads = encoder.head_outputs(features) if hasattr(encoder, "head_outputs") else {}
    pooled = [] if features.pooled is None else [features.pooled]
    return [features.tokens, *pooled, *features.scales, *heads.values()]


@pytest.mark.parametrize("which", [0, 1])
def test_any_grid(name: str, encoder: Encoder, which: int) -> None:
    images = image(name, which=which)
    features = encoder(images)
    assert features.grid_size == encoder.grid_size(tuple(images.shape[2:]))
    assert features.tokens.shape == (2, math.prod(features.grid_size), encoder.embed_dim)
    assert features.tokens.isfinite().all()
    sizes = [math.prod(scale.shape[2:]) for scale in features.scales]
    assert sizes == sorted(sizes, reverse=True)  # finest first
    assert all(size > math.prod(features.grid_size) for size in sizes)
    if not which:
        encoder(torch.zeros(1, images.shape[1], *encoder.smallest_shape))


def test_every_parameter_gets_a_gradient(name: str, encoder: Encoder) -> None:
    features = encoder.train()(image(name))
    sum(given.square().sum() for given in everything(encoder, features)).backward()
    assert [key for key, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_eval_is_deterministic_and_batched_equals_one_by_one(name: str, encoder: Encoder) -> None:
    images = image(name, batch=3)
    with torch.no_grad():
        together = everything(encoder, encoder(images))
        again = everything(encoder, encoder(images))
        apart = [everything(encoder, encoder(one[None])) for one in images]
    for index, given in enumerate(together):
        torch.testing.assert_close(given, again[index], rtol=0, atol=0)
        alone = torch.cat([one[index] for one in apart])
        torch.testing.assert_close(given, alone, rtol=1e-4, atol=1e-4 * float(given.abs().max()))


def test_state_dict_round_trip(name: str, encoder: Encoder) -> None:
    """Built again from its arguments as a config file holds them, which knows lists but no tuples."""
    other = type(encoder)(**json.loads(json.dumps(encoder.init_args))).eval()
    other.load_state_dict(encoder.state_dict())
    images = image(name)
    torch.testing.assert_close(other(images).tokens, encoder(images).tokens, rtol=0, atol=0)


def test_bf16_stays_close(name: str, encoder: Encoder) -> None:
    images = image(name)
    with torch.no_grad():
        exact = encoder(images).tokens
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = encoder(images).tokens.float()
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_checkpointing_changes_nothing(name: str, encoder: Encoder) -> None:
    """Neither gradients nor running statistics, though every block runs twice."""
    twin = type(encoder)(**encoder.init_args)
    twin.load_state_dict(encoder.state_dict())
    twin.checkpointing = True
    images = image(name)
    calls = [_calls(module) for module in (encoder, twin)]
    for module in (encoder.train(), twin.train()):
        module(images).tokens.square().mean().backward()
    assert sum(calls[1]) > sum(calls[0])  # it really computes again
    for (key, one), two in zip(encoder.named_parameters(), twin.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6, msg=key)
    torch.testing.assert_close(dict(encoder.named_buffers()), dict(twin.named_buffers()))


def _calls(encoder: Encoder) -> list[int]:
    """Counts every run of a linear or convolutional layer."""
    calls: list[int] = []
    for module in encoder.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv3d, torch.nn.Conv2d)):
            module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_token_affine(name: str, encoder: Encoder) -> None:
    """Patches point at their centres; odd kernels with symmetric padding at stride · index."""
    affine = torch.diag(torch.tensor([-2.0, 2.0, 5.0, 1.0], dtype=torch.float64))[None]
    affine[0, :3, 3] = torch.tensor([100.0, -50.0, 7.0])
    features = encoder(image(name, batch=1), affine)
    patch = torch.tensor(encoder.patch_size, dtype=torch.float64)
    convolved = isinstance(encoder, (vol3d.encoders.ResNet3D, vol3d.encoders.UNet3D))
    strided = convolved or encoder.init_args.get("stem") == "conv"
    voxels = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) * patch + (0 if strided else (patch - 1) / 2)
    expected = affine[0, :3, :3] @ voxels + affine[0, :3, 3]
    index = torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close((features.affine[0] @ index)[:3], expected)


class Tokens(torch.nn.Module):
    """torch.export gives tensors, not dataclasses."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images).tokens


def test_exports(name: str, encoder: Encoder) -> None:
    images = image(name)
    with torch.no_grad():
        exported = torch.export.export(Tokens(encoder), (images,), strict=False)
        given = exported.module()(images)
        torch.testing.assert_close(given, encoder(images).tokens, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def graphs(request: pytest.FixtureRequest) -> dict[str, int | str]:
    """Graphs of each encoder's training step, or what went wrong: in one process without the suite's type checks."""
    asked = {item.callspec.params["name"] for item in request.session.items if "graphs" in item.fixturenames}
    script = Path(__file__).with_name("encoder_graphs.py")
    command = [sys.executable, *(["-c", PLUGGED] if "torchvision_on_cpu" in sys.modules else []), str(script)]
    done = subprocess.run([*command, *sorted(asked)], capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout.splitlines()[-1])


PLUGGED = """
import runpy, sys
import torchvision_on_cpu
sys.argv.pop(0)
sys.path.insert(0, "tests")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""How a process starts whose torchvision is mended (tests/ci_timm)."""


def test_compiles_into_one_graph(name: str, graphs: dict[str, int | str]) -> None:
    """Forward and backward of a training step, checkpointing included, without a graph break."""
    assert graphs[name] == 1


SIZES_NEED_MEMORY = ("swin-unetr", "slice-vit-small")
"""Networks that ask the values of their own tensors while they are built: not on the meta device."""


def test_its_grid_fits_it(name: str) -> None:
    """The preset's shape through the published network, as shapes alone: channels, tokens and finer maps."""
    with torch.device("cpu" if name in SIZES_NEED_MEMORY else "meta"):
        encoder = vol3d.encoders.create(name)
    grid = vol3d.Grid.preset(encoder.preset)
    assert grid.channels == encoder.in_channels
    features = encoder.eval().to("meta")(torch.empty(1, grid.channels, *grid.shape, device="meta"))
    assert features.grid_size == encoder.grid_size(grid.shape)
    assert features.tokens.shape == (1, math.prod(features.grid_size), encoder.embed_dim)
    if isinstance(encoder, vol3d.encoders.ViT3D) and encoder.positions == "learned":
        assert features.grid_size == encoder.learned_grid
    strides = [grid.shape[0] // scale.shape[2] for scale in features.scales]
    doc_tables.row("sizes", [
        name, type(encoder).__name__, f"{sum(p.numel() for p in encoder.parameters()):,}", grid.name,
        " × ".join(map(str, grid.shape)), f"{features.tokens.shape[1]:,}", encoder.embed_dim,
        " ".join(map(str, strides)) or "–",
    ])  # fmt: skip


def test_the_docs_list_what_passed(name: str) -> None:
    """The row of each encoder whose checks all ran; with `-k` there are fewer, and nothing is said about them."""
    ran = set(PASSED[name])
    if not ran.issuperset(CHECKS):
        pytest.skip(f"{len(ran & set(CHECKS))} of {len(CHECKS)} checks of {name} ran")
    doc_tables.row("contract", [name, *("yes" for _ in CHECKS)])


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
    for positions in ("sincos", "rotary", "learned", "axial"):
        encoder = vol3d.encoders.create("vit3d-base", **(SMALL | GRIDS | {"positions": positions}))
        volume = torch.zeros(1, 1, 16, 16, 8)
        volume[..., :8, :, :] = 1
        # The same patches in mirrored places: without positions the tokens would only be mirrored too.
        tokens = encoder(volume).tokens.reshape(4, 4, 4, -1)
        mirrored = encoder(volume.flip(2)).tokens.reshape(4, 4, 4, -1).flip(0)
        assert (tokens - mirrored).abs().max() > 1e-4, positions


def test_errors_give_both_numbers_and_the_way_out() -> None:
    encoder = vol3d.encoders.create("vit3d-tiny", **SMALL)
    with pytest.raises(ValueError, match=r"3 channels, the encoder takes 1.*in_channels=3"):
        encoder(torch.zeros(1, 3, 16, 16, 8))
    with pytest.raises(ValueError, match=r"18 voxels along x, not a multiple of the patch size 4"):
        encoder(torch.zeros(1, 1, 18, 16, 8))
    with pytest.raises(ValueError, match=r"'resnet' *; there are .*vit3d-tiny"):
        vol3d.encoders.create("resnet")
    with pytest.raises(ValueError, match=r"embed_dim 50 is not a multiple of num_heads 4"):
        vol3d.encoders.ViT3D(embed_dim=50, num_heads=4)
    with pytest.raises(ValueError, match=r"\(6, 6, 6\) must be powers of two"):
        vol3d.encoders.ViT3D(patch_size=(6, 6, 6), stem="conv")
    with pytest.raises(ValueError, match=r"made for 3 channels and in_channels is 2: choose 1 .* or 3"):
        vol3d.encoders.ResNet3D(**RESNET, in_channels=2)
    radfm = vol3d.encoders.create("radfm", **(VARIANTS["radfm"][0] | GRIDS))
    with pytest.raises(ValueError, match=r"grid has 6 tokens along y, the learned positions end at 4"):
        radfm(torch.zeros(1, 1, 8, 24, 8))
    with pytest.raises(ValueError, match=r"attention names 2 blocks, which does not divide the depth 3"):
        vol3d.encoders.ViT3D(depth=3, attention=("slice", "scan"))
    with pytest.raises(ValueError, match=r"3 volumes are not studies of 2 scans each"):
        encoder(torch.zeros(3, 1, 16, 16, 8), scans=2)


def test_weights_that_do_not_fit_are_listed(tmp_path) -> None:
    from safetensors.torch import save_file

    encoder = vol3d.encoders.create("vit3d-tiny", **SMALL)
    state = encoder.state_dict()
    save_file(state, tmp_path / "right.safetensors")
    again = vol3d.encoders.create("vit3d-tiny", weights=str(tmp_path / "right.safetensors"), **SMALL)
    torch.testing.assert_close(again.state_dict(), state)
    with pytest.raises(ValueError, match=r"is \(192,\), the encoder has \(384,\)"):
        vol3d.encoders.create("vit3d-tiny", weights=tmp_path / "right.safetensors", **(SMALL | {"embed_dim": 96}))
    state["foreign.weight"] = state.pop("norm.weight").clone()
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"1 of \d+ tensors missing \['norm.weight'\], 1 unexpected"):
        vol3d.encoders.create("vit3d-tiny", weights=str(tmp_path / "wrong.safetensors"), **SMALL)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights.pt is not a .safetensors file.*vol3d convert"):
        vol3d.encoders.create("vit3d-tiny", weights=tmp_path / "weights.pt", **SMALL)
    with pytest.raises(ValueError, match=r"nowhere.safetensors is not there"):
        vol3d.encoders.create("vit3d-tiny", weights=tmp_path / "nowhere.safetensors", **SMALL)
