"""What a verb of the `vol3d` command is made of."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vol3d.model.inference import TrainedModel


@dataclass(frozen=True)
class Command:
    """One verb: its line in the help, an example, its arguments, and the function that does it.

    The function gets the parsed arguments and returns a JSON-ready object, the lines to show a person, and the
    exit code.
    """

    summary: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Result]


@dataclass(frozen=True)
class Result:
    """What a verb did: the JSON object, the lines for a person, and the exit code."""

    data: dict[str, Any]
    text: str
    code: int = 0


def at_least(least: int) -> Callable[[str], int]:
    """A whole number that an option takes, of `least` or more."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"is {text}: give at least {least}")
        return int(text)

    number.__name__ = "int"  # as argparse calls it: "invalid int value: 'x'"
    return number


def add_device(verb: argparse.ArgumentParser) -> None:
    """The option that says where a model runs."""
    verb.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")


def add_reading(verb: argparse.ArgumentParser) -> None:
    """How a manifest's volumes are read: many at once, and not again where they lie ready."""
    verb.add_argument(
        "--workers", type=at_least(0), default=0, metavar="N", help="processes that read volumes (default: 0)"
    )
    verb.add_argument(
        "--cache", metavar="DIR", help="read volumes from where `vol3d prepare` put them, or put them there"
    )


def trained_model(arguments: argparse.Namespace) -> TrainedModel:
    """The model a verb names, where `add_device` and `add_reading` say."""
    from vol3d.model.inference import load

    return load(arguments.model, device=arguments.device, cache=getattr(arguments, "cache", None))
