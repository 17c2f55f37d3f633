"""What to do when a device's memory does not suffice, said once and with the recipe's own words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from itertools import pairwise

import yaml


def out_of_memory(message: str, arguments: Sequence[str]) -> str:
    """One line: what was asked for, the command that tells where memory goes, and three remedies.

    Args:
        message: torch's. arguments: those of the run, its recipe among them.
    """
    asked = re.search(r"Tried to allocate ([\d.]+ \w+)", message)
    total = re.search(r"total capacity of ([\d.]+) (GiB|MiB)", message)
    lacking = f"the device's memory does not suffice{f' (asked for {asked[1]} more)' if asked else ''}"
    recipes = [after for flag, after in pairwise(arguments) if flag in ("--config", "-c")]
    recipes += [flag.partition("=")[2] for flag in arguments if flag.startswith("--config=")]
    gpu = "GB" if total is None else f"{float(total[1]) * (1.0737 if total[2] == 'GiB' else 0.00105):.0f}"
    batch = batch_size(recipes, arguments)
    where = f"`vol3d plan --config {shlex.quote(recipes[0]) if recipes else 'RECIPE'} --gpu {gpu}` shows where it goes"
    smaller = "--data.batch_size 1" if batch is None else f"--data.batch_size {max(1, batch // 2)} (now {batch})"
    if batch == 1:
        smaller = "a coarser grid or fewer visual tokens (data.batch_size is 1 already)"
    accumulate = "" if batch == 1 else " with --trainer.accumulate_grad_batches 2, which learns nearly the same"
    return (
        f"{lacking}: {where}; remedies: {smaller}{accumulate}; activation checkpointing or 4-bit weights (options of "
        "the encoder and of language.Pretrained); more GPUs by --config overlays/fsdp2.yaml. "
        "The last checkpoint is kept, --ckpt_path last goes on from it"
    )


def batch_size(recipes: Sequence[str], arguments: Sequence[str]) -> int | None:
    """The batch size these options ask for: on the command line, or in the last recipe that says it; None unknown."""
    options = dict(pairwise(arguments)) | {
        flag.partition("=")[0]: flag.partition("=")[2] for flag in arguments if "=" in flag
    }
    said = options.get("--data.batch_size", options.get("--data.init_args.batch_size"))
    for recipe in reversed(recipes) if said is None else ():
        try:
            with open(_path(recipe), encoding="utf-8") as file:
                said = (yaml.safe_load(file).get("data") or {}).get("batch_size")
        except (OSError, AttributeError, yaml.YAMLError):
            continue
        if said is not None:
            break
    return int(said) if str(said).isdigit() else None


def _path(recipe: str) -> str:
    from vol3d.training.cli import named

    return named([recipe])[0]
