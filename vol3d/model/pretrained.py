"""Saving a trained model to a folder and building it again: config.yaml, model.safetensors, grid.json, tokenizer,
card.md. No pickle, and nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn

from vol3d import __version__
from vol3d.model.adapters import Lora, Prefix, adapts_tied_head, dense_state, merged_state
from vol3d.model.interfaces import Encoder, Part, Projector, Task, plain
from vol3d.model.language import LanguageModel
from vol3d.model.volume_lm import VolumeLM
from vol3d.volume.atomic import save_tensors

if TYPE_CHECKING:
    from vol3d.volume.grid import Grid

_FILES = ("config.yaml", "model.safetensors", "grid.json")
"""What every saved model has."""
_PUBLIC = ("vol3d", "vol3d.encoders", "vol3d.tasks")


def save(
    folder: str | Path,
    model: VolumeLM,
    tasks: Mapping[str, Task],
    grid: Grid,
    *,
    card: str = "",
    merge: bool = False,
    base: str | Path | None = None,
) -> Path:
    """Write a model folder, whole or not at all; an earlier one of the same name is replaced.

    Args:
        grid: the preprocessing card the model was trained with.
        card: Markdown about data, recipe, scores and limits.
        merge: add LoRA adapters into the weights they adapt, so that the folder holds a plain language model, a little
            faster and loadable elsewhere; `model` itself stays as it is.
        base: the saved model that training began from; config.yaml names it, as seen from `folder`.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The temporary folder lies beside the final one, so that the last step is a rename on one file system.
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        config = _describe(model, tasks, merge)
        if base is not None:
            config["base"] = Path(os.path.relpath(base, folder)).as_posix()
        (draft / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        state = _state(model, tasks, merge=merge)
        # One entry of metadata: safetensors writes several in any order, and equal weights shall be equal files.
        save_tensors(state, draft / "model.safetensors", {"format": "pt"})
        grid.save(draft / "grid.json")
        (draft / "card.md").write_text(card, encoding="utf-8")
        if model.language is not None:
            model.language.tokenizer.save_pretrained(draft)
        draft.chmod(0o755)
        _replace(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return folder


def build(folder: str | Path) -> tuple[VolumeLM, dict[str, Task], Grid]:
    """The model, tasks and grid of a saved folder, in eval mode on the CPU.

    Raises:
        ValueError: the folder is not a saved model, or its weights do not fit its config.
    """
    from vol3d.volume.grid import Grid

    folder = Path(folder)
    absent = [name for name in _FILES if not (folder / name).is_file()]
    if absent:
        raise ValueError(
            f"{folder} is not a saved vol3d model: it has no {', '.join(absent)}; give the folder that training "
            "wrote, such as runs/demo/model"
        )
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    encoder = _part(config["encoder"], Encoder)
    language = None if config["language"] is None else _language(config["language"], folder)
    projector = None if config["projector"] is None else _part(config["projector"], Projector)
    model = VolumeLM(encoder, projector, language)
    tasks = {name: _part(spec, Task, model) for name, spec in config["tasks"].items()}
    _load_state(folder, model, tasks)
    for module in (model, *tasks.values()):
        module.eval()
    return model, tasks, Grid.load(folder / "grid.json")


def base_of(folder: str | Path) -> Path | None:
    """The saved model that this one was fine-tuned from, there or not; None where its folder names none."""
    config = yaml.safe_load((Path(folder) / "config.yaml").read_text(encoding="utf-8"))
    if not config.get("base"):
        return None
    found = Path(os.path.abspath(Path(folder) / config["base"]))
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found


def task_settings(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The arguments of a saved model's tasks by their class names ("VQA"), read without building anything."""
    config = yaml.safe_load((Path(folder) / "config.yaml").read_text(encoding="utf-8"))
    return {spec["class_path"].rpartition(".")[2]: spec["init_args"] for spec in config["tasks"].values()}


def _describe(model: VolumeLM, tasks: Mapping[str, Task], merge: bool) -> dict[str, Any]:
    language = None
    if model.language is not None:
        lm, lora, prefix = model.language.causal_lm, model.language.lora, model.language.prefix
        config = lm.config.to_dict()
        # Weights are saved dense, whatever they were held in.
        config.pop("quantization_config", None)
        if merge and adapts_tied_head(model.language):
            config["tie_word_embeddings"] = False
        language = {
            "config": config,
            "dtype": str(lm.dtype).removeprefix("torch."),
            "lora": None if lora is None or merge else asdict(lora),
            "prefix": None if prefix is None else asdict(prefix),
            "special_tokens": model.language.special_tokens,
            "generation": {"eos_token_id": model.language.stop_ids},
        }
    return {
        "vol3d": __version__,
        "encoder": _spec(model.encoder),
        "projector": None if model.projector is None else _spec(model.projector),
        "language": language,
        "tasks": {name: _spec(task) for name, task in tasks.items()},
    }


def _spec(part: Part) -> dict[str, Any]:
    kind = type(part)
    module = next((m for m in _PUBLIC if getattr(import_module(m), kind.__name__, None) is kind), kind.__module__)
    arguments = {name: plain(value) for name, value in part.init_args.items() if not isinstance(value, nn.Module)}
    arguments |= {name: _spec(value) for name, value in part.init_args.items() if isinstance(value, Encoder)}
    return {"class_path": f"{module}.{kind.__qualname__}", "init_args": arguments}


def _part(spec: Mapping[str, Any], kind: type[Part], *args: Any) -> Any:
    module, _, name = spec["class_path"].rpartition(".")
    found = getattr(import_module(module), name)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(f"{spec['class_path']} is not a {kind.__name__}: this config.yaml was not written by vol3d")
    arguments = {
        name: _part(value, Encoder) if isinstance(value, dict) and set(value) == {"class_path", "init_args"} else value
        for name, value in spec["init_args"].items()
    }
    return found(*args, **arguments)


def _language(spec: Mapping[str, Any], folder: Path) -> LanguageModel:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    settings = dict(spec["config"])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    lm = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, spec["dtype"]), trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for name, value in spec.get("generation", {}).items():
        setattr(lm.generation_config, name, value)
    return LanguageModel(
        lm,
        tokenizer,
        lora=None if spec["lora"] is None else Lora(**spec["lora"]),
        prefix=None if spec.get("prefix") is None else Prefix(**spec["prefix"]),
        special_tokens=spec.get("special_tokens", []),
    )


def _state(model: VolumeLM, tasks: Mapping[str, Task], *, merge: bool = False) -> dict[str, torch.Tensor]:
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if model.language is not None and (merge or getattr(model.language.causal_lm, "is_quantized", False)):
        state = {name: tensor for name, tensor in state.items() if not name.startswith("model.language.")}
        dense = merged_state(model.language) if merge else dense_state(model.language)
        state |= {f"model.language.{name}": tensor for name, tensor in dense.items()}
    for task, module in tasks.items():
        state.update({f"tasks.{task}.{name}": tensor for name, tensor in module.state_dict().items()})
    # safetensors refuses two names for one memory (tied embeddings): keep the first, which loads into both.
    kept: dict[int, str] = {}
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if tensor.numel() == 0 or kept.setdefault(tensor.data_ptr(), name) == name
    }


def _load_state(folder: Path, model: VolumeLM, tasks: Mapping[str, Task]) -> None:
    from safetensors.torch import load_file

    saved = load_file(folder / "model.safetensors")
    whole = nn.ModuleDict({"model": model, "tasks": nn.ModuleDict(tasks)})
    wanted = _state(model, tasks).keys()
    missing, unexpected = sorted(wanted - saved.keys()), sorted(saved.keys() - wanted)
    if missing or unexpected:
        raise ValueError(
            f"{folder / 'model.safetensors'} does not fit config.yaml beside it: {len(missing)} of {len(wanted)} "
            f"tensors missing {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}"
        )
    whole.load_state_dict(saved, strict=False)


def _replace(draft: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(draft, folder)
        return
    if not all((folder / name).is_file() for name in _FILES):
        raise ValueError(f"{folder} exists and is not a saved model: choose another folder, nothing was written")
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.replace(folder, old / "model")
    os.replace(draft, folder)
    shutil.rmtree(old)
