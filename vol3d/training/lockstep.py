"""Evaluation in step: where weights are divided, all processes run the same parts of a model at the same time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities import move_data_to_device
from torch.nn.modules.module import register_module_forward_pre_hook

from vol3d.data.batch import Batch
from vol3d.model.interfaces import Features, Task
from vol3d.model.volume_lm import VolumeLM

Lent = tuple[Features | None, Batch]


class _EnteredError(Exception):
    """A part of the model was about to run."""


def runs(task: Task, model: VolumeLM, features: Features | None, batch: Batch) -> bool:
    """Whether the task's loss runs a part of the model on this batch; none is run to find out."""

    def stop(*_: Any) -> None:
        raise _EnteredError

    hook = register_module_forward_pre_hook(stop)
    try:
        with torch.random.fork_rng(devices=[]):
            task.loss(model, features, batch)
    except _EnteredError:
        return True
    finally:
        hook.remove()
    return False


def lend(tasks: Mapping[str, Task], model: VolumeLM, features: Features | None, batch: Batch) -> dict[str, Lent]:
    """What to run tasks on that find no label in this process's batch, but do in another's: the other's batch.

    Running them, and throwing the result away, is what keeps this process in step: it takes part in the gathering of
    weights that the other waits for. Every process must call it with the same tasks; batches are sent only where
    they disagree.
    """
    own = [runs(task, model, features, batch) for task in tasks.values()]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    lenders = {
        name: ranks.index(True)
        for name, ranks in zip(tasks, zip(*every, strict=True), strict=True)
        if any(ranks) and not all(ranks)
    }
    device, sent = batch.affine.device, {}
    for rank in sorted(set(lenders.values())):
        mine = rank == dist.get_rank()
        parcel: list[Any] = [(move_data_to_device(features, "cpu"), batch.to("cpu")) if mine else None]
        dist.broadcast_object_list(parcel, src=rank)
        sent[rank] = move_data_to_device(parcel[0][0], device), parcel[0][1].to(device)
    return {name: sent[lenders[name]] for name, mine in zip(tasks, own, strict=True) if name in lenders and not mine}
