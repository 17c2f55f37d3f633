"""Reading checkpoints without running what is in them."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by name: .safetensors, torch's own files, or a folder of Hugging Face shards.

    A wrapping `state_dict` or `model` entry and a `module.` in front of every key are taken off.

    Raises:
        ValueError: absent, not a checkpoint, or a pickle that wants to run code.
    """
    if not path.exists():
        raise ValueError(
            f"{path} is not there: give the checkpoint's file, a folder of its shards, or its name on the Hub"
        )
    state: dict[str, Tensor] = {}
    for file in _files(path):
        state.update(_read(file))
    if not state:
        raise ValueError(f"{path} holds no tensors")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    return state


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for index in sorted(path.glob("*.index.json")):
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        absent = [shard for shard in shards if not (path / shard).is_file()]
        if absent:
            raise ValueError(f"{path} lacks {len(absent)} of the {len(shards)} shards in {index.name}: {absent[0]} …")
        return [path / shard for shard in shards]
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return [path / name]
    raise ValueError(f"{path} holds no model.safetensors, pytorch_model.bin or *.index.json: name the file itself")


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        # Mapped, not read: a 7 B model's file costs only the tensors that are kept.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "global" in line.lower()), "not tensors alone")
        raise ValueError(
            f"{path} wants to run Python code when it is read ({reason.strip()}), which vol3d does not allow: ask its "
            "author for .safetensors, or re-save its state dict where you trust it"
        ) from error
    except Exception as error:  # arbitrary bytes end torch's reader in arbitrary ways
        raise ValueError(f"{path} is not a checkpoint torch can read ({type(error).__name__}: {error})") from error
    return _tensors(loaded, path)


def _tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not tensors by name")
    return {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
