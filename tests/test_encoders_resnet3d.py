"""ResNet3D against Merlin: the same numbers from the same weights, in our axis order."""

from pathlib import Path
from typing import Any

import doc_tables
import merlin_peer
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import vol3d
from vol3d.encoders import convert
from vol3d.encoders.resnet3d import inflate

LAYERS = (1, 2, 1, 1)


def build(**overrides: Any) -> vol3d.encoders.ResNet3D:
    return vol3d.encoders.create("merlin-i3d-resnet152", **({"layers": LAYERS} | overrides)).eval()


def foreign_weights(width: int = 64, phenotypes: int = 7) -> dict[str, torch.Tensor]:
    """A Merlin state dict of random values, keys and (D, H, W) shapes by the published rule."""
    state: dict[str, torch.Tensor] = {}

    def conv(key: str, out: int, inside: int, *kernel: int) -> None:
        state[f"{key}.weight"] = torch.randn(out, inside, *kernel) * (2 / (inside * kernel[0] * kernel[1] ** 2)) ** 0.5

    def norm(key: str, channels: int) -> None:
        state[f"{key}.weight"], state[f"{key}.bias"] = torch.rand(channels) + 0.5, torch.randn(channels) * 0.1
        state[f"{key}.running_mean"] = torch.randn(channels) * 0.1
        state[f"{key}.running_var"] = torch.rand(channels) + 1
        state[f"{key}.num_batches_tracked"] = torch.tensor(3)

    conv("conv1", width, 3, 3, 7, 7)
    norm("bn1", width)
    channels = width
    for stage, depth in enumerate(LAYERS):
        inner = width << stage
        for block in range(depth):
            at = f"layer{stage + 1}.{block}"
            conv(f"{at}.conv1", inner, channels, 1, 1, 1)
            conv(f"{at}.conv2", inner, inner, 3, 3, 3)
            conv(f"{at}.conv3", 4 * inner, inner, 1, 1, 1)
            for index, size in enumerate((inner, inner, 4 * inner), 1):
                norm(f"{at}.bn{index}", size)
            if block == 0:
                conv(f"{at}.downsample.0", 4 * inner, channels, 1, 1, 1)
                norm(f"{at}.downsample.1", 4 * inner)
            channels = 4 * inner
    for head, size in (("classifier", phenotypes), ("contrastive_head", 512)):
        state[f"{head}.weight"], state[f"{head}.bias"] = torch.randn(size, channels, 1, 1, 1), torch.randn(size)
    return state


def reference(state: dict[str, torch.Tensor], image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Merlin by hand: (batch, 1, x, y, z) → (batch, 3, z, x, y), the last map and both heads."""

    def unit(current: torch.Tensor, conv: str, norm: str, stride: Any = 1, padding: Any = 0) -> torch.Tensor:
        current = F.conv3d(current, state[f"{conv}.weight"], stride=stride, padding=padding)
        parts = [state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(current, *parts)

    current = image.permute(0, 1, 4, 2, 3).repeat(1, 3, 1, 1, 1)
    current = unit(current, "conv1", "bn1", (1, 2, 2), (1, 3, 3)).relu()
    current = F.max_pool3d(current, 3, 2, 1)
    for stage, depth in enumerate(LAYERS):
        for block in range(depth):
            at, stride = f"layer{stage + 1}.{block}", 2 if stage and block == 0 else 1
            down = f"{at}.downsample.0.weight" in state
            residual = unit(current, f"{at}.downsample.0", f"{at}.downsample.1", stride) if down else current
            current = unit(current, f"{at}.conv1", f"{at}.bn1").relu()
            current = unit(current, f"{at}.conv2", f"{at}.bn2", stride, 1).relu()
            current = (unit(current, f"{at}.conv3", f"{at}.bn3") + residual).relu()
    pooled = current.mean((2, 3, 4), keepdim=True)
    heads = [F.conv3d(pooled, state[f"{h}.weight"], state[f"{h}.bias"]).flatten(1) for h in ("classifier",
             "contrastive_head")]  # fmt: skip
    return current, heads[0], heads[1]


def agree(given: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))


def test_converted_weights_give_merlins_numbers(tmp_path: Path) -> None:
    foreign = foreign_weights()
    torch.save({f"encode_image.i3_resnet.{key}": value for key, value in foreign.items()}
               | {"logit_scale": torch.ones(()), "encode_text.linear_layer.weight": torch.ones(2)},
               tmp_path / "merlin.pt")  # fmt: skip
    sizes = {"layers": LAYERS, "phenotypes": 7}
    done = convert.convert("merlin", tmp_path / "merlin.pt", tmp_path / "out", **sizes)
    assert (done.encoder, done.tensors, done.left_behind) == ("merlin-i3d-resnet152", len(foreign), ())
    encoder = vol3d.encoders.create(done.encoder, weights=done.folder, **sizes).eval()
    image = torch.rand(2, 1, 64, 32, 48)
    with torch.no_grad():
        last, phenotypes, contrastive = reference(foreign, image)
        features = encoder(image)
        heads = encoder.head_outputs(features)
    assert features.grid_size == (2, 1, 3)
    agree(features.tokens, last.permute(0, 3, 4, 2, 1).flatten(1, 3))  # (z, x, y) of Merlin → our order
    agree(heads["phenotypes"], phenotypes)
    agree(heads["contrastive"], contrastive)
    torch.testing.assert_close(features.pooled, features.tokens.mean(1))


def test_equals_merlins_own_package() -> None:
    peer = merlin_peer.i3resnet(LAYERS)
    if peer is None:
        pytest.skip("merlin-vlm is not installed (pip install --no-deps merlin-vlm)")
    foreign = foreign_weights(phenotypes=1692)
    peer.load_state_dict(foreign)
    encoder = build()
    encoder.load_state_dict(convert.translate("merlin", foreign, encoder)[0])
    image = torch.rand(1, 1, 64, 32, 48)
    with torch.no_grad():
        contrastive, phenotypes = peer.eval()(image)
        heads = encoder.head_outputs(encoder(image))
    agree(heads["contrastive"], contrastive)
    agree(heads["phenotypes"], phenotypes)
    doc_tables.parity("merlin", "merlin-i3d-resnet152", "merlin-vlm", "both heads", heads["phenotypes"], phenotypes)


def test_five_years_and_report_model_give_merlins_numbers() -> None:
    """The bare keys of the five-year model, and the report model's trunk kept in a Sequential."""
    foreign, image = foreign_weights(phenotypes=6), torch.rand(1, 1, 64, 32, 48)
    last, risks, contrastive = reference(foreign, image)
    encoder = vol3d.encoders.create("merlin-5yr", layers=LAYERS).eval()
    encoder.load_state_dict(convert.translate("merlin-5yr", foreign, encoder)[0])
    heads = encoder.head_outputs(encoder(image))
    agree(heads["phenotypes"], risks)
    agree(heads["contrastive"], contrastive)
    doc_tables.parity("merlin-5yr", "merlin-5yr", "its formulas", "six risks", heads["phenotypes"], risks)
    places = {"conv1": "0", "bn1": "1", **{f"layer{stage}": str(stage + 3) for stage in range(1, 5)}}
    kept = {key.partition(".")[::2]: value for key, value in foreign.items() if key.partition(".")[0] in places}
    trunk = {f"encode_image.vision_model.features.{places[at]}.{rest}": value for (at, rest), value in kept.items()}
    encoder = vol3d.encoders.create("merlin-report", layers=LAYERS).eval()
    encoder.load_state_dict(convert.translate("merlin-report", trunk, encoder)[0])
    given, wanted = encoder(image).tokens, last.permute(0, 3, 4, 2, 1).flatten(1, 3)
    agree(given, wanted)
    doc_tables.parity("merlin-report", "merlin-report", "its formulas", "tokens", given, wanted)


def test_one_channel_stands_for_three() -> None:
    one = vol3d.encoders.ResNet3D(layers=LAYERS, width=8).eval()
    three = vol3d.encoders.ResNet3D(layers=LAYERS, width=8, in_channels=3).eval()
    three.load_state_dict(one.state_dict())
    image = torch.rand(1, 1, 32, 32, 16)
    agree(one(image).tokens, three(image.repeat(1, 3, 1, 1, 1)).tokens)
    exact, folded = three.double()(image.double().repeat(1, 3, 1, 1, 1)).tokens, one.double()(image.double()).tokens
    torch.testing.assert_close(folded, exact, rtol=1e-12, atol=1e-13)


def test_checkpointing_computes_again_only_what_is_cheap() -> None:
    """Each convolution and each narrowing product of a block once; the stem, and what widens a block's map, twice."""
    runs: dict[bool, list[int]] = {}
    for checkpointing in (False, True):
        encoder = vol3d.encoders.ResNet3D(layers=LAYERS, width=8, checkpointing=checkpointing).train()
        with Products() as found:
            tokens = encoder(torch.rand(1, 1, 64, 32, 16)).tokens
            forward = list(found.counts)
            tokens.sum().backward()
        # Each has two gradients in the backward pass, but for the image, which wants none.
        runs[checkpointing] = [after - before for before, after in zip(forward, found.counts, strict=True)]
        assert forward == [1 + sum(LAYERS), 2 * sum(LAYERS) + len(LAYERS)]
    extra = [again - once for once, again in zip(runs[False], runs[True], strict=True)]
    assert extra == [1, sum(LAYERS) + len(LAYERS)]


class Products(TorchDispatchMode):
    """Counts convolutions and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = [0, 0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for place, kind in enumerate((torch.ops.aten.convolution.default, torch.ops.aten.mm.default)):
            self.counts[place] += func is kind
        return func(*args, **(kwargs or {}))


def test_a_norm_held_in_eval_mode_counts_nothing() -> None:
    """Fine-tuning often freezes the statistics: with checkpointing they must stay too."""
    encoder = vol3d.encoders.ResNet3D(layers=LAYERS, width=8, checkpointing=True).train()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eval()
    before = {key: value.clone() for key, value in encoder.named_buffers()}
    encoder(torch.rand(2, 1, 64, 32, 16)).tokens.sum().backward()
    torch.testing.assert_close(dict(encoder.named_buffers()), before, rtol=0, atol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_synchronised_norms_give_and_count_what_plain_ones_do(checkpointing: bool) -> None:
    """`trainer.sync_batchnorm: true` puts torch's SyncBatchNorm in every norm's place."""
    plain = vol3d.encoders.ResNet3D(layers=LAYERS, width=8).train()
    twin = vol3d.encoders.ResNet3D(layers=LAYERS, width=8, checkpointing=checkpointing)
    twin.load_state_dict(plain.state_dict())
    twin = torch.nn.SyncBatchNorm.convert_sync_batchnorm(twin).train()
    image = torch.rand(2, 1, 64, 32, 16)
    for encoder in (plain, twin):
        encoder(image).tokens.square().sum().backward()
    torch.testing.assert_close(dict(twin.named_buffers()), dict(plain.named_buffers()))
    agree(twin.conv1.weight.grad, plain.conv1.weight.grad)


def test_published_sizes() -> None:
    with torch.device("meta"):
        encoder = vol3d.encoders.create("merlin-i3d-resnet152")
        trunk = vol3d.encoders.create("merlin-report")
        five_years = vol3d.encoders.create("merlin-5yr")
    assert len(encoder.state_dict()) == 934
    assert sum(p.numel() for p in encoder.parameters()) == 121_882_204
    assert sum(p.numel() for p in trunk.parameters()) == 117_366_208
    assert sum(p.numel() for p in five_years.parameters()) == 117_366_208 + 1_049_088 + 6 * 2048 + 6
    shape = vol3d.Grid.preset("merlin").shape
    assert encoder.grid_size(shape) == (7, 7, 10)
    with torch.device("meta"):
        features = encoder(torch.empty(1, 1, *shape))
    assert features.tokens.shape == (1, 490, 2048)
    assert [tuple(scale.shape[1:]) for scale in features.scales] == [
        (64, 112, 112, 160), (256, 56, 56, 80), (512, 28, 28, 40), (1024, 14, 14, 20),
    ]  # fmt: skip


def test_a_token_looks_around_the_voxel_its_affine_names() -> None:
    """The centre of what moves a token, weighted by how much, is stride · index, not the patch's centre."""
    encoder = vol3d.encoders.ResNet3D(layers=(1, 1, 1, 1), width=4).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(0.1 if parameter.ndim > 1 else 1.0)
    image = torch.rand(1, 1, 160, 32, 80, requires_grad=True)
    features = encoder(image, torch.eye(4, dtype=torch.float64)[None])
    token = features.tokens.reshape(5, 1, 5, -1)[2, 0, 2]  # far from the borders along x and z
    token.sum().backward()
    seen = image.grad[0, 0].abs()
    for axis, expected in ((0, 64.0), (2, 32.0)):
        along = seen.sum([other for other in range(3) if other != axis])
        centre = (along * torch.arange(len(along))).sum() / along.sum()
        assert abs(centre - expected) < 0.5
        assert (features.affine[0] @ torch.tensor([2.0, 0, 2, 1], dtype=torch.float64))[axis] == expected


def test_inflation_puts_the_2d_kernel_in_the_middle_slice() -> None:
    flat = merlin_peer.flat_resnet(LAYERS).state_dict()
    encoder = vol3d.encoders.ResNet3D(layers=LAYERS)
    state = inflate(flat)
    encoder.load_state_dict(state)
    torch.testing.assert_close(encoder.conv1.weight[..., 1], flat["conv1.weight"])
    assert not encoder.conv1.weight[..., [0, 2]].any()
    torch.testing.assert_close(encoder.layer2[0].downsample[0].weight[..., 0], flat["layer2.0.downsample.0.weight"])
    with pytest.raises(ValueError, match=r"these 1 tensors .* not a bottleneck ResNet's.*resnet50"):
        inflate({"blocks.0.norm.weight": torch.ones(1)})
