"""Weights between a base model and the one it was fine-tuned into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from vol3d.model.adapters import merged_state
from vol3d.model.fine_tuning import unadapted
from vol3d.model.interfaces import Task
from vol3d.model.pretrained import build, save
from vol3d.model.volume_lm import VolumeLM

# Where a checkpoint came from and what wrote it are no part of what it is.
_ORIGIN = ("vol3d", "_name_or_path", "transformers_version", "lora", "base")


def merge(base: str | Path, tuned: str | Path, out: str | Path, *, alpha: float = 0.5) -> Path:
    """Write the model whose weights are (1 - alpha) · base + alpha · tuned.

    Fine-tuning gains on its own task and may lose on others and on other scanners; models between the two ends keep
    much of both.

    Both must be one model: the same parts with the same settings, the same grid, the same tokenizer. LoRA adapters are
    first added into the weights they adapt (the mean of two adapters' factors is not the mean of what they do), so that
    a model with an adapter merges with its plain base, too, and the result is a plain model. A task that only one of
    the two has is kept as it is there. Counts, such as those of a batch norm, are the tuned model's.

    Args:
        base, tuned: folders of saved models.
        out: folder to write, whole or not at all; an earlier model of that name is replaced.
        alpha: share of `tuned`, 0 to 1.

    Returns:
        `out`.

    Raises:
        ValueError: alpha outside 0 to 1, a folder that is no model, or models that differ in more than weights (what
            differs is named, with both values).

    Source: WiSE-FT, Wortsman et al. (arXiv:2109.01903); used on medical vision-language models in μ-Bench
    (arXiv:2407.01791).
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: give the tuned model's share, between 0 (base) and 1 (tuned)")
    base, tuned, out = Path(base), Path(tuned), Path(out)
    one, its_tasks, grid = build(base)
    model, tasks, other_grid = build(tuned)
    _check_same(_config(base), _config(tuned), base, tuned)
    _check_same({"grid": grid.to_dict()}, {"grid": other_grid.to_dict()}, base, tuned)
    _check_tokenizers(one, model, base, tuned)
    mixed = _mixed(_state(one, its_tasks), _state(model, tasks), alpha)
    tasks = {**its_tasks, **tasks}
    model = unadapted(model, tasks, other_grid)
    _module(model, tasks).load_state_dict(mixed)
    return save(out, model, tasks, other_grid, card=_card(base, tuned, alpha), base=base)


def _module(model: VolumeLM, tasks: Mapping[str, Task]) -> nn.ModuleDict:
    return nn.ModuleDict({"model": model, "tasks": nn.ModuleDict(tasks)})


def _state(model: VolumeLM, tasks: Mapping[str, Task]) -> dict[str, Tensor]:
    """Every tensor by its name in the plain model, adapters added in."""
    state = dict(_module(model, tasks).state_dict())
    if model.language is not None and model.language.lora is not None:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("model.language.")}
        state |= {f"model.language.{name}": tensor for name, tensor in merged_state(model.language).items()}
    return state


def _mixed(base: dict[str, Tensor], tuned: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    mixed = {**base, **tuned}
    for name in base.keys() & tuned.keys():
        if tuned[name].is_floating_point():
            # In float32, because a mean of two bfloat16 numbers is seldom one.
            mixed[name] = torch.lerp(base[name].float(), tuned[name].float(), alpha).to(tuned[name].dtype)
    return mixed


def _config(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))


def _check_same(one: Any, other: Any, base: Path, tuned: Path, path: str = "") -> None:
    """Raise on the first setting that differs; of the tasks, those that both have are compared."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = one.keys() & other.keys() if path == "tasks" else one.keys() | other.keys()
        for name in sorted(names - set(_ORIGIN)):
            _check_same(one.get(name), other.get(name), base, tuned, f"{path}.{name}" if path else name)
    elif one != other:
        raise ValueError(
            f"{path} is {one!r} in {base} and {other!r} in {tuned}: weights can be mixed only between two trainings of "
            "one model on one grid"
        )


def _check_tokenizers(one: VolumeLM, other: VolumeLM, base: Path, tuned: Path) -> None:
    if one.language is None or other.language is None:
        return
    words, others = (model.language.tokenizer.get_vocab() for model in (one, other))
    if words != others:
        differ = len(dict(words.items() ^ others.items()))
        raise ValueError(
            f"the tokenizer of {base} has {len(words)} tokens, that of {tuned} {len(others)}, and {differ} of them "
            "differ: a row of weights would mean another word; fine-tune from the saved base model"
        )


def _card(base: Path, tuned: Path, alpha: float) -> str:
    both = "".join(f"\n\n## {folder.name}\n\n{_text(folder)}" for folder in (base, tuned))
    return (
        f"# Mixed weights\n\n{alpha:g} · tuned + {1 - alpha:g} · base (WiSE-FT). Not evaluated as such: run "
        f"`vol3d evaluate`. Not validated for any clinical use.\n\nThe cards of its two ends follow.{both}\n"
    )


def _text(folder: Path) -> str:
    card = folder / "card.md"
    return card.read_text(encoding="utf-8").strip() if card.is_file() else "No card."
