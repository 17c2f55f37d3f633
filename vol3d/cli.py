"""The `vol3d` command. Each verb calls one public function; torch is imported only once a verb has been chosen."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from vol3d import __version__
from vol3d.commands import data, evaluation, inference, training
from vol3d.commands.command import Command

LIGHTNING = {
    "fit": "train by a recipe",
    "validate": "losses on the validation split",
    "test": "losses on the test split",
    "predict": "write predictions.jsonl for the test split",
}
REFUSED, INTERRUPTED = 2, 130
OUT_OF_MEMORY = {
    "batch_size": "a smaller --batch-size",
    "device": "another GPU (--device cuda:1) or --device cpu",
}
"""What helps when memory does not suffice, by the option that a verb has for it."""
IN_THE_WAY = {
    FileNotFoundError: "give one that is there",
    FileExistsError: "a file lies where a folder is needed: give another",
    NotADirectoryError: "a file lies where a folder is needed: give another",
    IsADirectoryError: "a folder lies where a file is needed: give another",
    PermissionError: "give one that you may read, or write to",
}
"""What helps where the system refuses a path."""

COMMANDS: dict[str, Command] = {
    **training.COMMANDS,
    **data.COMMANDS,
    **inference.COMMANDS,
    **evaluation.COMMANDS,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (0 done, 1 something found wrong, 2 refused, 130 interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _expect_warnings()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no "→" shows "?"
    options: dict[str, Any] = {}
    try:
        if argv and argv[0] in LIGHTNING:
            from vol3d.training.cli import run

            run(argv)
            return 0
        arguments = _parser().parse_args(argv)
        options = vars(arguments)
        result = COMMANDS[arguments.command].run(arguments)
        sys.stdout.write((json.dumps(result.data) if arguments.json else result.text) + "\n")
        return result.code
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as error:
        # Lightning turns Ctrl-C into exit code 1 after shutting the run down.
        if isinstance(error.__context__, KeyboardInterrupt):
            return _interrupted()
        raise
    except BrokenPipeError:
        # The reader (head, less) has left; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("VOL3D_DEBUG") == "1":
            raise
        sys.stderr.write(f"vol3d: {_one_line(error, options)}\n")
        return REFUSED


def _interrupted() -> int:
    sys.stderr.write("vol3d: interrupted\n")
    return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see `{self.prog} --help`)")


def _one_line(error: Exception, options: Collection[str]) -> str:
    """What went wrong, and a way out by the options that the verb has."""
    message = " ".join(str(error).split()) or "no message"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        remedy = next((remedy for kind, remedy in IN_THE_WAY.items() if isinstance(error, kind)), None)
        return f"{error.filename2 or error.filename}: {'; '.join(filter(None, [error.strerror, remedy]))}"
    if isinstance(error, (ValueError, OSError, ImportError)):
        return message
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which may not be imported
        remedies = ", ".join(remedy for option, remedy in OUT_OF_MEMORY.items() if option in options)
        return message.split(". ")[0] + (f": give {remedies}" if remedies else "")
    return f"{type(error).__name__}: {message} (this may be a bug; VOL3D_DEBUG=1 shows where)"


def _expect_warnings() -> None:
    """Warnings of the libraries below say nothing a user can act on; vol3d's own go through logging."""
    import logging
    import warnings

    logging.basicConfig(format="vol3d: %(message)s", level=logging.WARNING)
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vol3d",
        description="Train, run and judge multimodal language models on CT volumes. Not for clinical use.",
        epilog="`vol3d COMMAND --help` shows an example of each.",
    )
    parser.add_argument("-V", "--version", action="version", version=f"vol3d {__version__}")
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        verb = verbs.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(verb)
        verb.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    for name, summary in LIGHTNING.items():
        verbs.add_parser(name, help=summary, add_help=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
