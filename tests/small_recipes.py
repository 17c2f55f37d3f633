"""Recipes made small enough for a test, without a word about any one of them.

`small(recipe, …)` resolves a recipe as `vol3d fit` does (parts, overlays, every default), shrinks what is large by its
name (widths, depths, latents, grid, steps), puts a tiny random language model where a pretrained one stands, and
writes the result to a file of its own. A new recipe needs no entry anywhere. If yours holds a size under a name that
is not in LIMITS, add the name there.
"""

import contextlib
import importlib
import io
import math
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import vol3d
from vol3d.model.interfaces import Encoder
from vol3d.training.cli import run
from vol3d.volume.presets import PRESETS

RECIPES = Path(__file__).parent.parent / "recipes"

LIMITS = {
    "embed_dim": 48, "depth": 1, "inner_dim": 48, "num_latents": 16, "num_queries": 16, "width": 8, "slice_depth": 1,
    "column_depth": 1, "combiner_depth": 1, "latent_dim": 16, "hidden_dim": 48, "dim": 48, "max_new_tokens": 24,
    "rank": 4,
}  # fmt: skip
"""The largest value a test trains with, by the name of the argument."""

TRAINER = {
    "accelerator": "cpu", "precision": "32-true", "enable_progress_bar": False, "log_every_n_steps": 1,
    "limit_val_batches": 0, "accumulate_grad_batches": 1, "strategy": "auto", "devices": 1, "num_nodes": 1,
    "max_epochs": None, "max_time": None,
}  # fmt: skip
SHAPE = (32, 32, 16)
EXTENT_MM = (400.0, 400.0, 416.0)


def found(under: str) -> list[str]:
    """The complete recipes (under=""), or the YAML files under "parts" or "overlays", by path from recipes/."""
    every = sorted(str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml"))
    if under:
        return [name for name in every if name.startswith(f"{under}/")]
    return [name for name in every if not name.startswith(("parts/", "overlays/"))]


def resolved(*options: str) -> dict[str, Any]:
    """What `vol3d fit` makes of these options, every default written out."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as left:
        run(["fit", *options, "--print_config"])
    assert left.value.code == 0
    return yaml.safe_load(said.getvalue())


def stages_of(recipe: str, *overlays: str) -> int:
    """How many stages a recipe trains in."""
    return len(_resolved(recipe, overlays)["model"]["stages"] or [None])


def small(
    recipe: str,
    manifest: Path,
    folder: Path,
    steps: int,
    language: Path | None = None,
    overlays: Sequence[str] = (),
    stage_steps: int | None = None,
) -> list[str]:
    """Options for `run(["fit", …])`: the recipe, small, for `steps` steps; each stage but the last has `stage_steps` of
    them, by default so many that at least half are the last one's. Manifests of single stages are `manifest` too."""
    config = _resolved(recipe, overlays)
    model, data = config["model"], config["data"]
    patch = _small_encoder(model["encoder"])
    _shrink({key: part for key, part in model.items() if key != "encoder"}, language)
    _small_injection(model)
    stages = model["stages"] or {}
    for stage in stages.values():
        if stage["steps"] is not None:
            stage["steps"] = stage_steps or max(1, steps // (2 * len(stages)))
    config["trainer"] |= {**TRAINER, "max_steps": steps}
    data |= {"manifest": str(manifest), "batch_size": min(4, max(2, data["batch_size"])), "num_workers": 0}
    data["others"] = data["others"] and {name: str(manifest) for name in data["others"]}
    data["cache"] = data["cache"] and str(folder / "cache")
    data["grid"] = _small_grid(data["grid"], patch, (model["projector"] or {}).get("init_args", {}))
    config["run"] = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return ["--config", str(path)]


def _resolved(recipe: str, overlays: Sequence[str]) -> dict[str, Any]:
    return resolved(*(f"--config={name}" for name in (recipe, *overlays)))


def _shrink(node: Any, language: Path | None) -> None:
    """Every size below `node`, in place."""
    if isinstance(node, list):
        for value in node:
            _shrink(value, language)
    if not isinstance(node, dict):
        return
    if node.get("class_path", "").endswith("language.Pretrained"):
        own = node["init_args"]
        own |= {"name": str(language), "dtype": "float32"}
        own |= {key: None for key in own if key == "gguf_file" or "quant" in key}
    for key, value in node.items():
        if isinstance(value, int) and not isinstance(value, bool) and key in LIMITS:
            node[key] = min(value, LIMITS[key])
        elif key == "code_map":  # the others come with a package
            node[key] = "findings"
        elif key == "text_encoder" and "/" in str(value):  # a Hub name
            node[key] = str(language)
        else:
            _shrink(value, language)
    if "embed_dim" in node and isinstance(node.get("num_heads"), int):
        node["num_heads"] = min(node["num_heads"], 2)
    if "depth" in node and node.get("attention"):
        node["depth"] = len(node["attention"])


def _small_encoder(node: dict[str, Any]) -> tuple[int, int, int]:
    """Shrink the encoder in place; what is left of its patch."""
    arguments = node["init_args"]
    if node["class_path"].endswith("encoders.create"):
        kind, named = vol3d.encoders._CONFIGS[arguments["name"]]
        defaults = {key: value.default for key, value in signature(kind).parameters.items()}
        arguments["weights"] = None
        node["dict_kwargs"] = arguments = _listed({**defaults, **named, **(node.get("dict_kwargs") or {})})
    for key in {"layers", "blocks", "depths"} & arguments.keys():
        # Each level of blocks halves the volume: fewer take a smaller grid.
        arguments[key] = [1] * min(len(arguments[key]), 3 if key == "blocks" else 9)
    for index, member in enumerate(arguments.get("members", [])):
        member = {"name": member} if isinstance(member, str) else member
        inner = {"class_path": "vol3d.encoders.create", "init_args": {"name": member["name"]}, "dict_kwargs": member}
        inner["dict_kwargs"] = {key: value for key, value in member.items() if key != "name"}
        _small_encoder(inner)
        arguments["members"][index] = {"name": member["name"], **inner["dict_kwargs"]}
    _shrink(arguments, None)
    return _built(node).patch_size


def _built(node: dict[str, Any]) -> Encoder:
    module, _, name = node["class_path"].rpartition(".")
    made = getattr(importlib.import_module(module), name)
    return made(**node["init_args"], **(node.get("dict_kwargs") or {}))


def _small_injection(model: dict[str, Any]) -> None:
    """A projector into decoder layers: as many layers as the small encoder's scales, in a decoder that has them."""
    own = (model["projector"] or {}).get("init_args", {})
    if "scale_dims" not in own:
        return
    if own["scale_dims"]:
        encoder = _built(model["encoder"]).eval()
        image = torch.zeros(1, encoder.in_channels, *(2 * size for size in encoder.patch_size))
        own["scale_dims"] = [scale.shape[1] for scale in encoder(image).scales]
        own["layers"] = own["layers"][: len(own["scale_dims"])]
    own["layers"] = list(range(len(own["layers"])))
    decoder = model["language"]["init_args"]
    if "depth" in decoder:
        decoder["depth"] = len(own["layers"])


def _small_grid(grid: Any, patch: tuple[int, int, int], projector: dict[str, Any]) -> dict[str, Any]:
    """The recipe's grid over about the same millimetres, at least two visual tokens along each axis."""
    if isinstance(grid, str):
        grid = {"name": grid, **PRESETS[grid]}
    if "class_path" in grid:
        grid = grid["init_args"]
    pooled = projector.get("pooling") or projector.get("block") or (1, 1, 1)
    cells = [size * pool for size, pool in zip(patch, pooled, strict=True)]
    shape = [math.ceil(max(least, 2 * cell) / cell) * cell for least, cell in zip(SHAPE, cells, strict=True)]
    spacing = [extent / size for extent, size in zip(EXTENT_MM, shape, strict=True)]
    return {**_listed(grid), "shape": shape, "spacing": spacing, "crop": "center"}


def _listed(value: Any) -> Any:
    """YAML knows lists but no tuples."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (tuple, list)) else value
