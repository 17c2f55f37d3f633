"""Merlin's own network from its PyPI package (merlin-vlm), to be compared with; also used by benchmarks/encoders.py."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from torch import nn


def i3resnet(layers: Sequence[int]) -> nn.Module | None:
    """Their I3ResNet on a random 2D ResNet, or None when merlin-vlm is not installed.

    Two of their modules are loaded from their files: importing the package would ask for torchvision and the Hub.
    """
    found = importlib.util.find_spec("merlin")
    if found is None or not (Path(found.origin).parent / "models" / "i3res.py").is_file():
        return None
    folder = Path(found.origin).parent / "models"
    before = {key: module for key, module in sys.modules.items() if key.split(".")[0] == "merlin"}
    try:
        for name in ("merlin", "merlin.models"):
            sys.modules[name] = ModuleType(name)
        for name in ("inflate", "i3res"):
            spec = importlib.util.spec_from_file_location(f"merlin.models.{name}", folder / f"{name}.py")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            setattr(sys.modules["merlin.models"], name, module)
            spec.loader.exec_module(module)
        return sys.modules["merlin.models.i3res"].I3ResNet(flat_resnet(layers), class_nb=1692, conv_class=True)
    finally:
        for key in [key for key in sys.modules if key.split(".")[0] == "merlin"]:
            del sys.modules[key]
        sys.modules.update(before)


class FlatBottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or channels != 4 * width:
            conv = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))


def flat_resnet(layers: Sequence[int]) -> nn.Module:
    """The layers of a 2D bottleneck ResNet under torchvision's names."""
    net = nn.Module()
    net.conv1, net.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
    net.maxpool, net.avgpool, net.fc = nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Linear(2048, 10)
    channels = 64
    for stage, depth in enumerate(layers):
        blocks = []
        for index in range(depth):
            blocks.append(FlatBottleneck(channels, 64 << stage, 2 if stage and index == 0 else 1))
            channels = 256 << stage
        setattr(net, f"layer{stage + 1}", nn.Sequential(*blocks))
    return net
