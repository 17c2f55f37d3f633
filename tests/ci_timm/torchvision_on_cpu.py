"""A pytest plugin (`-p torchvision_on_cpu`) that lets PyPI's torchvision import beside a CPU torch.

PyPI carries torchvision for CUDA only. On a CPU torch its library cannot be loaded, and its import ends because the
shape rules of two operators have nothing to stand on. Declaring the two is enough; nobody here calls them. This is
for the tests: users install the torchvision that belongs to their torch.
"""

import torch

_LIBRARY = None

if torch.version.cuda is None:
    _LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # kept, or the declarations go with it
    for _operator in ("nms", "qnms"):
        _LIBRARY.define(_operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
