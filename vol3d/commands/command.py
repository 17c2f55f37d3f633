"""What a verb of the `vol3d` command is made of."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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
