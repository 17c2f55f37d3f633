"""A run's checkpoint, in one file or in the pieces of many processes, made a model folder that `vol3d.load` reads."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from vol3d.data.dataset import VolumeData
from vol3d.model.language import LanguageModel
from vol3d.model.pretrained import save
from vol3d.training.module import VolumeModule, training_texts
from vol3d.training.recipe import RecipeParts
from vol3d.volume.files import brief

_GIVE = "give the file or the folder under RUN/checkpoints that ends in .ckpt, whole"


def consolidate(
    checkpoint: str | Path,
    recipe: str | Path | None,
    out: str | Path,
    *,
    merge: bool = False,
    data: VolumeData | None = None,
) -> Path:
    """Write the model folder `out` from a checkpoint of DDP, FSDP2 or DeepSpeed; it needs the memory, but no GPU.

    A run writes RUN/model by itself when it ends; this is for one that did not, or for an earlier checkpoint.

    Args:
        checkpoint: RUN/checkpoints/last.ckpt, a file or a folder.
        recipe: RUN/recipe.yaml; None for the one beside the folder the checkpoint lies in.
        merge: add LoRA adapters into the weights they adapt.
        data: read its manifest and grid instead of the recipe's.

    Raises:
        ValueError: not a checkpoint, or one of another model than the recipe's (the first missing names are told), or
            with other words, when the training reports have changed since.
        ImportError: a checkpoint of DeepSpeed's, and deepspeed is not installed.

    Example:
        >>> consolidate("runs/a/checkpoints/last.ckpt", "runs/a/recipe.yaml", "runs/a/model")  # doctest: +SKIP
    """
    recipe = Path(checkpoint).absolute().parent.parent / "recipe.yaml" if recipe is None else recipe
    saved, parts = read_whole(checkpoint), RecipeParts(["--config", str(recipe)])
    return write_model(parts.model, data or parts.datamodule, saved, out, merge=merge, told=str(checkpoint))


def write_model(
    module: VolumeModule, data: Any, saved: dict[str, Any], out: str | Path, *, merge: bool = False, told: str = ""
) -> Path:
    """The model folder of a module that was not fitted yet and a checkpoint of one that was (`read_whole`)."""
    if module.language is not None and not isinstance(module.language, LanguageModel):
        module.language = module.build_language(training_texts(data))
    module.configure_model()
    wanted, state = module.state_dict(), saved["state_dict"]
    # What has no axis here has one of length 1 under FSDP2.
    without = {name for name in wanted.keys() & state.keys() if wanted[name].ndim == 0 and state[name].shape == (1,)}
    state = {name: value[0] if name in without else value for name, value in state.items()}
    shapes = [name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape]
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unexpected or shapes:
        raise ValueError(
            f"{told} is not of this recipe's model: {len(missing)} of {len(wanted)} weights missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}, {len(shapes)} of another shape {sorted(shapes)[:3]}; give "
            "the recipe.yaml and the manifest of the run"
        )
    module.on_load_checkpoint(saved)  # as many words need not be the same words
    module.load_state_dict(state)
    card = f"# vol3d model\n\nWeights of `{Path(told).name}`.\n\nFor research only. Not a medical device.\n"
    return save(out, module.model, dict(module.tasks.items()), data.grid, card=card, merge=merge, base=module.base)


def read_whole(checkpoint: str | Path) -> dict[str, Any]:
    """A checkpoint of any strategy as one device would have written it, on the CPU: the module's weights ("state_dict")
    and what it says beside them.

    Raises:
        ValueError: not a checkpoint.
    """
    path = Path(checkpoint)
    if path.is_file():
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, EOFError, UnpicklingError) as error:
            raise ValueError(f"{path} is no checkpoint of a run, or not whole ({brief(error)}): {_GIVE}") from error
        if not isinstance(saved, dict) or "state_dict" not in saved:
            raise ValueError(f"{path} is no checkpoint of a run, it has no state_dict: {_GIVE}")
        return saved
    if (path / ".metadata").is_file():
        return _of_fsdp(path)
    if (path / "latest").is_file() or (path / "checkpoint").is_dir():
        return _of_zero(path)
    raise ValueError(f"{path} is no checkpoint: {_GIVE}")


def _of_fsdp(path: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / "whole.pt"
        dcp_to_torch_save(path, file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    return torch.load(path / "meta.pt", map_location="cpu", weights_only=True) | weights


def _of_zero(path: Path) -> dict[str, Any]:
    from lightning.pytorch.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict

    # It prints, and writes what it also returns.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, contextlib.redirect_stdout(io.StringIO()):
        return convert_zero_checkpoint_to_fp32_state_dict(path, str(Path(folder) / "whole.pt"))
