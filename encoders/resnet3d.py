"""ResNet3D: a 2D ResNet inflated to volumes, as in Merlin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from vol3d.encoders.recompute import KEEP_PRODUCTS, Recomputing
from vol3d.encoders.stems import check_folding, strided_affine
from vol3d.model.interfaces import Features
from vol3d.types import Affines, Volumes


class ResNet3D(Recomputing):
    """Bottleneck ResNet whose kernels have grown a third axis.

    The stem's kernel spans 7 × 7 × 3 voxels with stride 2 in the plane only; everything after it strides all three
    axes, so a token stands for 32 × 32 × 16 voxels. A stem made for three channels and given one sums its kernel over
    them: exactly what three equal channels would give, at a third of the cost.

    Args:
        layers: bottlenecks in each of the four stages: (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) 101, (3, 8, 36, 3) 152.
        width: channels after the stem; tokens are 32 × as wide.
        in_channels: HU windows a volume comes with, 1 or stem_channels.
        stem_channels: channels the stem's kernel is made for.
        phenotypes: logits of a linear head on the pooled tokens (Merlin: 1692 phecodes, or 6 diseases in five years).
        contrastive_dim: width of a second head, the vector compared with reports (Merlin: 512).
        checkpointing: compute again in the backward pass what is cheap (norms, activations, the widening product of
            each block, the stem) and keep what is dear (the other products); less memory, same result (running
            statistics too).
        preset: name of the Grid this encoder was trained on.

    Shape:
        image: (batch, in_channels, x, y, z), multiples of (32, 32, 16) → tokens (batch, gx * gy * gz, 32 * width),
        pooled their mean, scales at strides (2, 2, 1), (4, 4, 2), (8, 8, 4), (16, 16, 8).

    Source: I3D (arXiv:1705.07750) applied to ResNet as in Merlin (arXiv:2406.06512). Differs: axes stay x, y, z.
    """

    def __init__(
        self,
        *,
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        in_channels: int = 1,
        stem_channels: int = 3,
        phenotypes: int | None = None,
        contrastive_dim: int | None = None,
        checkpointing: bool = False,
        preset: str | None = None,
    ) -> None:
        super().__init__()
        check_folding(in_channels, stem_channels)
        self.in_channels, self.embed_dim, self.patch_size = in_channels, 32 * width, (32, 32, 16)
        self.checkpointing, self.preset = checkpointing, preset
        self.conv1 = nn.Conv3d(stem_channels, width, (7, 7, 3), stride=(2, 2, 1), padding=(3, 3, 1), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        channels = width
        for stage, depth in enumerate(layers):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Bottleneck3D(channels, width << stage, stride))
                channels = 4 * (width << stage)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.classifier = None if phenotypes is None else nn.Linear(channels, phenotypes)
        self.contrastive_head = None if contrastive_dim is None else nn.Linear(channels, contrastive_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Volumes, affine: Affines | None = None) -> Features:
        self.check_channels(image)
        grid_size = self.grid_size(tuple(image.shape[2:]))
        fine, current = self._counting(self._stem, [self.bn1], image)
        maps = [fine]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                (current,) = self._counting(block, block.norms(), current, keep=KEEP_PRODUCTS)
            maps.append(current)
        tokens = current.flatten(2).transpose(1, 2)
        return Features(tokens, grid_size, self.token_affine(affine), tokens.mean(1), tuple(maps[:-1]))

    def _stem(self, image: Tensor, counted: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        weight = self.conv1.weight
        if self.in_channels != self.conv1.in_channels:
            weight = weight.sum(1, keepdim=True)
        image = F.conv3d(image, weight, stride=self.conv1.stride, padding=self.conv1.padding)
        # From here on channels lie innermost: norms and pointwise convolutions run over memory as it lies.
        image = image.contiguous(memory_format=torch.channels_last_3d)
        image = F.relu(_normed(self.bn1, image, counted), inplace=True)
        return image, F.max_pool3d(image, kernel_size=3, stride=2, padding=1)

    def _counting(
        self,
        part: Callable[..., tuple[Tensor, ...]],
        norms: list[nn.Module],
        image: Tensor,
        keep: Callable[..., Any] | None = None,
    ) -> tuple[Tensor, ...]:
        """What `part` gives; when it is computed again, its norms count the batch once all the same."""
        if not (self.checkpointing and self.training):
            return part(image)
        found = self.run(_counted, part, image, keep=keep)
        given, flat = found[: len(found) - 2 * len(norms)], found[len(found) - 2 * len(norms) :]
        for norm, mean, variance in zip(norms, flat[::2], flat[1::2], strict=True):
            _count(norm, mean, variance)
        return given

    def head_outputs(self, features: Features) -> dict[str, Tensor]:
        """What the trained heads say of the pooled tokens: `phenotypes` (batch, phenotypes) logits and `contrastive`
        (batch, contrastive_dim), each when the encoder has that head."""
        heads = {"phenotypes": self.classifier, "contrastive": self.contrastive_head}
        return {name: head(features.pooled) for name, head in heads.items() if head is not None}

    def token_affine(self, affine: Affines | None) -> Affines | None:
        return strided_affine(affine, self.patch_size)


def _counted(part: Callable[..., tuple[Tensor, ...]], image: Tensor) -> tuple[Tensor, ...]:
    """What `part` gives, and the mean and variance its norms saw: a computation without side effects, which may be
    repeated and compiled."""
    counted: list[Tensor] = []
    return (*part(image, counted), *counted)


def _normed(norm: nn.Module, image: Tensor, counted: list[Tensor] | None) -> Tensor:
    """What a batch norm gives, of one device or of all (SyncBatchNorm); with `counted`, its share of the running
    statistics goes there, not into them."""
    if counted is None:
        return norm(image)
    mean, variance = norm.weight.new_zeros(norm.num_features), norm.weight.new_zeros(norm.num_features)
    counted += [mean, variance]
    if not norm.training:
        return norm(image)
    share = {
        "running_mean": mean,
        "running_var": variance,
        "num_batches_tracked": norm.weight.new_zeros((), dtype=torch.long),
    }
    return functional_call(norm, share, (image,))


def _count(norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Count what was handed out, unless the norm is held in eval mode."""
    if not norm.training:
        return
    norm.running_mean.mul_(1 - norm.momentum).add_(mean)
    norm.running_var.mul_(1 - norm.momentum).add_(variance)
    norm.num_batches_tracked += 1


class Pointwise3D(nn.Conv3d):
    """1 × 1 × 1 convolution as the matrix product it is: with channels innermost nothing has to be reordered, which
    takes half the time of the convolution on a CPU."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__(channels, width, 1, stride=stride, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        step = self.stride[0]
        image = image[:, :, ::step, ::step, ::step].movedim(1, -1)
        return F.linear(image, self.weight.flatten(1)).movedim(-1, 1)


class Bottleneck3D(nn.Module):
    """1 × 1 × 1, 3 × 3 × 3 (which strides), 1 × 1 × 1 to four times the width; residual."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = Pointwise3D(channels, width), nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3, self.bn3 = Pointwise3D(width, 4 * width), nn.BatchNorm3d(4 * width)
        self.downsample = None
        if stride != 1 or channels != 4 * width:
            self.downsample = nn.Sequential(Pointwise3D(channels, 4 * width, stride), nn.BatchNorm3d(4 * width))

    def norms(self) -> list[nn.Module]:
        """In the order in which they count."""
        skipping = [] if self.downsample is None else [self.downsample[1]]
        return [*skipping, self.bn1, self.bn2, self.bn3]

    def forward(self, image: Tensor, counted: list[Tensor] | None = None) -> tuple[Tensor]:
        residual = image
        if self.downsample is not None:
            residual = _normed(self.downsample[1], self.downsample[0](image), counted)
        # In place: what a norm gives is read by nothing else, not even by its own backward pass.
        out = F.relu(_normed(self.bn1, self.conv1(image), counted), inplace=True)
        out = F.relu(_normed(self.bn2, self.conv2(out), counted), inplace=True)
        out = _normed(self.bn3, self.conv3(out), counted)
        return (F.relu(out.add_(residual), inplace=True),)


def inflate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A 2D ResNet's state dict (timm's or torchvision's names) → ResNet3D's, without its classifier.

    Each 2D kernel becomes the middle slice of the 3D one, the rest is zero: at first the network looks at slices.

    Raises:
        ValueError: not a bottleneck ResNet.

    Source: "centre inflation", arXiv:1705.07750's code; Merlin starts from ImageNet this way.
    """
    if "conv1.weight" not in state or "layer1.0.conv3.weight" not in state:
        raise ValueError(
            f"these {len(state)} tensors ({sorted(state)[:2]} …) are not a bottleneck ResNet's: pass the state dict of "
            "timm's or torchvision's resnet50, resnet101 or resnet152"
        )
    inflated = {}
    for name, tensor in state.items():
        if name.startswith("fc."):
            continue
        if tensor.ndim == 4:
            slices = 3 if tensor.shape[-1] > 1 else 1
            kernel = tensor.new_zeros(*tensor.shape, slices)
            kernel[..., slices // 2] = tensor
            tensor = kernel
        inflated[name] = tensor
    return inflated


_MERLIN: dict[str, Any] = {"layers": (3, 8, 36, 3), "preset": "merlin"}

RESNET3D_CONFIGS: dict[str, dict[str, Any]] = {
    "resnet3d-50": {"layers": (3, 4, 6, 3), "preset": "merlin"},
    "resnet3d-101": {"layers": (3, 4, 23, 3), "preset": "merlin"},
    "merlin-i3d-resnet152": {**_MERLIN, "phenotypes": 1692, "contrastive_dim": 512},
    "merlin-5yr": {**_MERLIN, "phenotypes": 6, "contrastive_dim": 512},
    "merlin-report": _MERLIN,
}
