"""Memory of a whole batch that is used again: touching fresh memory costs more than reading a cache entry into it."""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

_KEPT = 4
"""Free slots that are held at most, so that volumes of ever other shapes do not pile up."""


class Slots:
    """Hands out int16 tensors; memory comes back by itself once no tensor or view of it is left.

    With CUDA it is pinned (torch's own allocator reuses it once the copy to the device is done), in a loader's worker
    it is shared memory, so that neither collating nor the way to the training process copies a voxel.
    """

    def __init__(self) -> None:
        self._free: OrderedDict[int, NDArray[np.int16]] = OrderedDict()

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Memory of this shape; what it holds is undefined."""
        if get_worker_info() is not None:
            # As torch's own collate does it: the batch is written once, where the training process reads it.
            storage = torch.UntypedStorage._new_shared(2 * math.prod(shape))
            return torch.empty(0, dtype=torch.int16).set_(storage).reshape(shape)
        if torch.cuda.is_available():
            return torch.empty(shape, dtype=torch.int16, pin_memory=True)
        voxels = math.prod(shape)
        found = next((key for key, memory in self._free.items() if memory.size == voxels), None)
        memory = np.empty(voxels, np.int16) if found is None else self._free.pop(found)
        view = memory[:]  # the tensor's storage keeps this very object alive, and so does every view of the tensor
        weakref.finalize(view, _give_back, self._free, memory).atexit = False
        return torch.from_numpy(view).reshape(shape)

    def __getstate__(self) -> dict[str, object]:
        """Another process starts with none."""
        return {"_free": OrderedDict()}


def _give_back(free: OrderedDict[int, NDArray[np.int16]], memory: NDArray[np.int16]) -> None:
    free[id(memory)] = memory
    while len(free) > _KEPT:
        free.popitem(last=False)
