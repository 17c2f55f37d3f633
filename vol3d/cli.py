"""The `vol3d` command. Each verb calls one public function; torch is imported only once a verb has been chosen."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from vol3d import __version__

LIGHTNING = {
    "fit": "train by a recipe",
    "validate": "losses on the validation split",
    "test": "losses on the test split",
    "predict": "write predictions.jsonl for the test split",
}
REFUSED, INTERRUPTED = 2, 130


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


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (0 done, 1 something found wrong, 2 refused, 130 interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _expect_warnings()
    try:
        if argv and argv[0] in LIGHTNING:
            from vol3d.training.cli import run

            run(argv)
            return 0
        arguments = _parser().parse_args(argv)
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
        sys.stderr.write(f"vol3d: {_one_line(error)}\n")
        return REFUSED


def _interrupted() -> int:
    sys.stderr.write("vol3d: interrupted\n")
    return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see `{self.prog} --help`)")


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split()) or "no message"
    if isinstance(error, (ValueError, OSError, ImportError)):
        return message
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
    parser.add_argument("--version", action="version", version=f"vol3d {__version__}")
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


# --- the verbs ----------------------------------------------------------------------------------------------


def _demo_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--out", default="runs/demo", help="folder of the run (default: runs/demo)")
    verb.add_argument("--seed", type=int, default=0, help="of phantoms and weights (default: 0)")


def _demo(arguments: argparse.Namespace) -> Result:
    from vol3d.demo import demo

    summary = demo(arguments.out, seed=arguments.seed)
    return Result(summary.data, summary.text)


def _phantom_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("out", metavar="OUT", help="folder to write")
    verb.add_argument("--studies", type=int, required=True, metavar="N")
    verb.add_argument("--seed", type=int, default=0, metavar="S")
    verb.add_argument("--shape", type=int, nargs=3, default=(160, 160, 128), metavar=("X", "Y", "Z"))
    verb.add_argument("--twins", type=int, default=0, metavar="N", help="pairs that differ in one finding")
    verb.add_argument("--workers", type=int, default=1, metavar="N")


def _phantom(arguments: argparse.Namespace) -> Result:
    from vol3d import phantom

    path = phantom.write(
        arguments.out,
        studies=arguments.studies,
        seed=arguments.seed,
        shape=tuple(arguments.shape),
        twins=arguments.twins,
        workers=arguments.workers,
        progress=True,
    )
    return Result({"manifest": str(path), "studies": arguments.studies}, f"{arguments.studies} studies: {path}")


def _doctor_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("manifest", metavar="MANIFEST")
    verb.add_argument("--workers", type=int, default=0, metavar="N", help="processes beside this one (default: 0)")
    verb.add_argument("--page", metavar="HTML", help="also write a page with thumbnails")
    verb.add_argument("--resume", metavar="JSONL", help="keeps what each volume showed, to go on after a stop")


def _doctor(arguments: argparse.Namespace) -> Result:
    from vol3d.data.doctor import doctor

    found = doctor(arguments.manifest, arguments.workers, resume=arguments.resume, page=arguments.page, progress=True)
    lines = [f"{row['severity']:8}{row['check']:20}{row['study'] or '(all)'}: {row['message']}" for row in found]
    wrong = sum(row["severity"] == "error" for row in found)
    summary = f"{wrong} errors, {sum(row['severity'] == 'warning' for row in found)} warnings"
    return Result({"findings": found, "errors": wrong}, "\n".join([*lines, summary]), code=1 if wrong else 0)


def _prepare_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("manifest", metavar="MANIFEST")
    verb.add_argument("--grid", required=True, metavar="NAME", help="a preset's name, or a grid.json")
    verb.add_argument("--cache", required=True, metavar="DIR")
    verb.add_argument("--workers", type=int, default=1, metavar="N")


def _prepare(arguments: argparse.Namespace) -> Result:
    from vol3d.data.cache import prepare
    from vol3d.volume.grid import Grid

    grid = Grid.load(arguments.grid) if arguments.grid.endswith(".json") else Grid.preset(arguments.grid)
    report = prepare(arguments.manifest, grid, arguments.cache, workers=arguments.workers, progress=True)
    data = {**asdict(report), "failures": None if report.failures is None else str(report.failures)}
    text = f"{report.studies} studies: {report.made} made, {report.ready} were ready, {report.failed} failed"
    if report.failures is not None:
        text += f", see {report.failures}"
    return Result(data, f"{text}; {report.seconds:.1f} s", code=1 if report.failed else 0)


def _evaluate_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="folder of a saved model")
    verb.add_argument("manifest", metavar="MANIFEST")
    verb.add_argument("--out", required=True, metavar="DIR")
    verb.add_argument("--split", default=None, help="only this split (default: test, or all when there is none)")
    verb.add_argument("--batch-size", type=int, default=16, metavar="N")


def _evaluate(arguments: argparse.Namespace) -> Result:
    from vol3d.evaluation.run import evaluate, summary

    result = evaluate(
        arguments.model,
        arguments.manifest,
        out=arguments.out,
        split=arguments.split,
        batch_size=arguments.batch_size,
        progress=True,
    )
    return Result(result, summary(result))


def _report_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="folder of a saved model")
    verb.add_argument("image", metavar="IMAGE", help="NIfTI, NRRD, MHA/MHD, or a folder with one DICOM series")


def _report(arguments: argparse.Namespace) -> Result:
    from pathlib import Path

    from vol3d.model.inference import load
    from vol3d.text.sections import split_organs, split_report

    start = time.perf_counter()
    model = load(arguments.model)
    text = model.report(arguments.image)
    parts = split_report(text)
    data = {
        "study": Path(arguments.image).name,
        "findings": parts.findings,
        "impression": parts.impression,
        "sections": split_organs(parts.findings or text),
        "seconds": round(time.perf_counter() - start, 2),
        "grid": model.grid.to_dict(),
    }
    return Result(data, text)


def _convert_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", metavar="NAME", help="the peer: m3d-clip, merlin, ct-clip, segvol, radfm …")
    verb.add_argument("weights", metavar="WEIGHTS", help="the peer's checkpoint, or a folder of its shards")
    verb.add_argument("out", metavar="OUT", help="folder to write")


def _convert(arguments: argparse.Namespace) -> Result:
    from vol3d.encoders.convert import convert

    done = convert(arguments.name, arguments.weights, arguments.out)
    data = {key: str(value) if key == "folder" else value for key, value in vars(done).items()}
    text = (
        f"{done.tensors} tensors, {done.parameters:,} parameters: {done.folder}\n"
        f'load:   vol3d.encoders.create("{done.encoder}", weights="{done.folder}")'
    )
    return Result(data, text)


def _info_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", nargs="?", metavar="MODEL", help="folder of a saved model")


def _info(arguments: argparse.Namespace) -> Result:
    from vol3d.info import info

    data = info(arguments.model)
    lines = [f"{name}: {value}" for name, value in data.items() if name != "card"]
    return Result(data, "\n".join([*lines, *(["", data["card"].strip()] if "card" in data else [])]))


COMMANDS = {
    "demo": Command(
        "phantoms → train → evaluate → page, on a CPU, offline", "vol3d demo --out runs/demo", _demo_arguments, _demo
    ),
    "phantom": Command(
        "write synthetic CT studies with known truth",
        "vol3d phantom phantoms --studies 100 --seed 0",
        _phantom_arguments,
        _phantom,
    ),
    "doctor": Command(
        "audit a dataset before a GPU is rented",
        "vol3d doctor data/manifest.jsonl --page doctor.html",
        _doctor_arguments,
        _doctor,
    ),
    "prepare": Command(
        "fill the cache of volumes on a grid",
        "vol3d prepare data/manifest.jsonl --grid merlin --cache cache --workers 4",
        _prepare_arguments,
        _prepare,
    ),
    "evaluate": Command(
        "score a model on a manifest, with intervals and baselines",
        "vol3d evaluate runs/demo/model data/manifest.jsonl --out evaluation",
        _evaluate_arguments,
        _evaluate,
    ),
    "report": Command(
        "write the report of one CT", "vol3d report runs/demo/model ct.nii.gz --json", _report_arguments, _report
    ),
    "convert": Command(
        "turn a peer's weights into ours",
        "vol3d convert m3d-clip pretrained_ViT.bin weights/m3d-clip",
        _convert_arguments,
        _convert,
    ),
    "info": Command(
        "versions, devices, and what a model was trained on", "vol3d info runs/demo/model", _info_arguments, _info
    ),
}

if __name__ == "__main__":
    sys.exit(main())
