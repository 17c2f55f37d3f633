"""One model on many devices: what FSDP2 and DeepSpeed need to know about it, and how its weights come together again.

The overlays `fsdp2.yaml`, `deepspeed_zero2.yaml` and `deepspeed_zero3_offload.yaml` choose a strategy of
Lightning's; nothing here trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from vol3d.data.batch import Batch
from vol3d.model.cross_entropy import is_sharded
from vol3d.model.interfaces import Task

STEPS = ("training_step", "validation_step", "test_step", "predict_step")
"""What Lightning calls on the module; inside them its weights are whole."""


class _ZeroPrecision(DeepSpeedPrecision):
    """Lightning's would round every float of a batch, the affine's millimetres too, and refuses its frozen studies."""

    def convert_input(self, data: Any) -> Any:
        if isinstance(data, Batch) and data.image.is_floating_point():
            return replace(data, image=data.image.to(self._desired_dtype))
        return data


class ZeroStrategy(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy for a model that is read or built whole and divided afterwards.

    ZeRO-3 would divide each layer while `configure_model` makes it; weights read from a file, or a table that grows by
    new tokens, would then meet layers that hold nothing. So each process keeps the whole model in its CPU's memory
    until training starts.

    Args:
        config: DeepSpeed's own configuration; what it leaves out (clipping, accumulation, precision) Lightning adds.
        process_group_backend: None chooses NCCL for GPUs.

    Raises:
        ImportError: deepspeed is not installed.
    """

    def __init__(self, config: dict[str, Any], process_group_backend: str | None = None) -> None:
        if find_spec("deepspeed") is None:
            raise ImportError('this recipe trains by DeepSpeed, which is not installed: pip install "vol3d[deepspeed]"')
        # A copy: Lightning writes into it.
        super().__init__(config=deepcopy(config), process_group_backend=process_group_backend)

    def setup(self, trainer: Any) -> None:
        if self.zero_stage_3:
            refuse_predicting(trainer)
        check_labels(self.lightning_module, trainer.datamodule)
        self.precision_plugin = _ZeroPrecision(self.precision_plugin.precision)
        super().setup(trainer)

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        self._init_config_if_needed()
        yield


class Fsdp2Strategy(ModelParallelStrategy):
    """FSDP2 by Lightning's ModelParallelStrategy: weights, gradients and optimizer divided over all devices.

    Each block of a stack of equal ones (transformer layers, residual blocks) is gathered when it runs; all other
    weights (embeddings, projector, heads) are gathered for the whole step, since tasks read them by many ways.

    Args:
        save_distributed_checkpoint: each process writes its part; False gathers whole checkpoints in the first
            process's CPU memory, in one file that any strategy goes on from.
        process_group_backend: None chooses NCCL for GPUs.

    Raises:
        ValueError: the processes built different weights (when training starts).
    """

    def __init__(self, *, save_distributed_checkpoint: bool = True, process_group_backend: str | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Any) -> None:
        refuse_predicting(trainer)
        check_labels(self.lightning_module, trainer.datamodule)
        shard(self.lightning_module, self.device_mesh["data_parallel"])
        super().setup(trainer)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of every weight that will ever learn: those no stage has trained yet are saved at zero, because
        loading asks for all of them."""
        inner = getattr(optimizer, "_optimizer", optimizer)
        for parameter in (p for group in inner.param_groups for p in group["params"] if p not in inner.state):
            zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            inner.state[parameter] = {"step": torch.tensor(0.0), **zeros}
        return (
            super().optimizer_state(optimizer)
            if self._save_distributed_checkpoint
            else _whole_moments(self.model, inner)
        )

    def lightning_module_state_dict(self) -> dict[str, Any]:
        state = super().lightning_module_state_dict()
        if self._save_distributed_checkpoint:
            return state
        without = {
            name for name, parameter in self.model.named_parameters() if id(parameter) in _without_axis(self.model)
        }
        return {name: value[0] if name in without else value for name, value in state.items()}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Also a checkpoint in one file, of DDP or of one device, whose weights are divided here."""
        path = Path(self.broadcast(checkpoint_path))
        if not path.is_file():
            return super().load_checkpoint(path, weights_only=weights_only)
        checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        _divide_weights(self.model, checkpoint.pop("state_dict"), path)
        for optimizer, saved in zip(self.optimizers, checkpoint.get("optimizer_states", ()), strict=False):
            _divide_moments(optimizer, saved)
        return checkpoint

    def on_validation_end(self) -> None:
        """A step without a backward pass leaves weights gathered; training goes on with the pieces."""
        settle(self.lightning_module)


def refuse_predicting(trainer: Any) -> None:
    """Predicting divides the studies, never the weights.

    Raises:
        ValueError: several processes are to predict with weights that they share.
    """
    if trainer.predicting and trainer.world_size > 1:
        raise ValueError(
            f"{trainer.world_size} processes that share a model's weights cannot predict: reports end at different "
            "lengths, and each would wait for the others for ever. Add --trainer.strategy ddp; weights that lie in "
            "pieces first make a folder by `vol3d consolidate`, which --model.base FOLDER takes"
        )


def check_labels(module: Any, data: Any) -> None:
    """Divided weights are gathered by all processes at once: where one of them has no label for a task in its batch and
    leaves the task out, the others wait for ever. So all studies of a stage carry a task's labels, or none does.

    Tasks that do not say which studies they learn from (`Task.learns`, `Task.labelled`) are not checked.

    Raises:
        ValueError: a task whose labels only some of the studies carry (stage, task and both numbers are named).
    """
    if data is None:
        return
    for name, stage in module.stages.items():
        manifest = data.manifest if stage.data is None else data.others[stage.data]
        studies = manifest.split("train")
        for task in stage.tasks or module.tasks:
            kind = type(module.tasks[task])
            if kind.learns is Task.learns and kind.labelled is Task.labelled:
                continue
            labelled = sum(module.tasks[task].learns(study) for study in studies)
            if 0 < labelled < len(studies):
                raise ValueError(
                    f"stage {name!r}, task {task!r}: {labelled} of {len(studies)} training studies carry its labels, "
                    "and a process that meets none would leave the others waiting: take overlays/ddp.yaml, or give the "
                    "stage a manifest of labelled studies (data)"
                )


def shard(module: Any, mesh: DeviceMesh) -> None:
    """Divide a VolumeModule's weights over the mesh's devices; it is to be called before its optimizer is made."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    _check_equal(module)
    learnable = {name for name, parameter in module.named_parameters() if id(parameter) in module.learnable}
    _give_axes(module)
    for block in blocks(module):
        fully_shard(block, mesh=mesh)
        if hasattr(block, "looks"):
            register_fsdp_forward_method(block, "looks")
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    for step in STEPS:
        register_fsdp_forward_method(module, step)
    module.learnable = {id(parameter) for name, parameter in module.named_parameters() if name in learnable}


def _give_axes(module: nn.Module) -> None:
    """A parameter without an axis (a temperature) becomes a vector of one number, since FSDP2 divides along an axis.

    `whole` takes the axis away again; without FSDP2, and in saved models, such a parameter stays as it is.
    """
    made: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter.ndim == 0:
                vector = nn.Parameter(parameter.detach()[None], parameter.requires_grad)
                owner._parameters[name] = made.setdefault(id(parameter), vector)
                owner._without_axis = {*getattr(owner, "_without_axis", ()), name}


def _without_axis(module: nn.Module) -> set[int]:
    """The parameters that `_give_axes` has given one, by their `id`."""
    owners = [(owner, getattr(owner, "_without_axis", ())) for owner in module.modules()]
    return {id(owner._parameters[name]) for owner, names in owners for name in names}


def _numbered(optimizer: Optimizer, saved: dict[str, Any]) -> Iterator[tuple[Any, Tensor]]:
    """What a saved state calls each parameter; groups and their order are the same, whatever the names."""
    names = [name for group in saved["param_groups"] for name in group["params"]]
    return zip(names, [p for group in optimizer.param_groups for p in group["params"]], strict=True)


def _whole_moments(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The state of an optimizer as one that divides nothing would save it, in the first process; {} in the others.

    Lightning numbers the parameters as the module holds them, not as the optimizer's groups do, and another strategy
    would give the moments of one weight to another.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_optimizer_state_dict(module, optimizer, options=options).get("state", {})
    if dist.get_rank():
        return {}
    without, names = _without_axis(module), {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[str, Any] = {"state": {}, "param_groups": optimizer.state_dict()["param_groups"]}
    for number, parameter in _numbered(optimizer, found):
        moments = state[names[id(parameter)]]
        scalar = id(parameter) in without
        found["state"][number] = {key: value[0] if scalar and value.ndim else value for key, value in moments.items()}
    return found


def _divided(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, with the axis that `like` may have been given."""
    value = value.reshape(like.shape) if value.ndim == 0 else value
    if not isinstance(like, DTensor):
        return value
    mesh = like.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def _divide_weights(module: Any, state: dict[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    sizes = [
        name for name in own.keys() & state.keys() if own[name].shape != (state[name].shape or (1,) * own[name].ndim)
    ]
    if missing or unexpected or sizes:
        raise ValueError(
            f"{path} is not of this recipe's model: {len(missing)} of {len(own)} weights missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}, {len(sizes)} of another shape {sorted(sizes)[:3]}; give "
            "the recipe and the manifest of the run that wrote it"
        )
    for name, value in own.items():
        value.copy_(_divided(state[name], value))


def _divide_moments(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    state: dict[Any, dict[str, Tensor]] = {}
    for number, parameter in _numbered(optimizer, saved):
        moments = saved["state"].get(number)  # none where no stage has trained the weight yet
        if moments is not None:
            state[number] = {
                key: value if key == "step" else _divided(value, parameter) for key, value in moments.items()
            }
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


def blocks(module: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of several modules of one class: what repeats, and holds most weights."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)) and _repeats(child):
            found += list(child)
        else:
            found += blocks(child)
    return found


def _repeats(stack: nn.ModuleList | nn.Sequential) -> bool:
    kinds = {type(member) for member in stack}
    return len(stack) > 1 and len(kinds) == 1 and all(any(True for _ in member.parameters()) for member in stack)


def _check_equal(module: nn.Module) -> None:
    """FSDP2 takes each process's own piece as it is, so pieces of different models would make a new one."""
    own = [float(sum(parameter.detach().double().abs().sum() for parameter in module.parameters()))]
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own[0])
    if max(every) - min(every) > 1e-9 * max(every):
        raise ValueError(
            f"the processes built different weights (their sizes sum to {min(every):.6g} … {max(every):.6g}): set "
            "seed_everything in the recipe"
        )


def settle(module: nn.Module) -> None:
    """Let go of gathered weights, so that `parameters()` are the pieces the optimizer holds; nothing without FSDP2."""
    for part in module.modules():
        if hasattr(part, "reshard"):
            part.reshard()


# --- together again -----------------------------------------------------------------------------------------


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Inside, the first process's module holds whole weights on the CPU; every process must enter.

    One weight at a time is gathered on the device. A module that is not divided stays as it is.
    """
    settle(module)
    owners = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False)
        if is_sharded(parameter)
    ]
    gathered: dict[int, nn.Parameter] = {}
    first = not dist.is_initialized() or dist.get_rank() == 0
    for owner, name, parameter in owners:
        if id(parameter) not in gathered:
            value = _gather(parameter)
            if first and name in getattr(owner, "_without_axis", ()):
                value = value[0]
            gathered[id(parameter)] = nn.Parameter(value if first else value[:0], requires_grad=False)
    try:
        if first:
            for owner, name, parameter in owners:
                owner._parameters[name] = gathered[id(parameter)]
        yield
    finally:
        for owner, name, parameter in owners:
            owner._parameters[name] = parameter


@torch.no_grad()
def _gather(parameter: Any) -> Tensor:
    """The whole weight, on the CPU. A ZeRO-3 weight (`ds_id`) brings its own ways to come together and part again."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().cpu()
    parameter.all_gather()
    value = parameter.detach().cpu().clone()
    parameter.partition(has_been_updated=False)
    return value
