"""Verbs on data: make it, audit it, cache it."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from vol3d.commands.command import Command, Result


def _phantom_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("out", metavar="OUT", help="folder to write")
    verb.add_argument("--studies", type=int, required=True, metavar="N")
    verb.add_argument("--seed", type=int, default=0, metavar="S")
    verb.add_argument("--shape", type=int, nargs=3, default=(160, 160, 128), metavar=("X", "Y", "Z"))
    verb.add_argument("--findings", nargs="+", metavar="NAME", help="only these may occur (default: all 24)")
    verb.add_argument("--prevalence", type=float, metavar="P", help="of each finding (default: its own)")
    verb.add_argument("--twins", type=int, default=0, metavar="N", help="pairs that differ in one finding")
    verb.add_argument("--workers", type=int, default=1, metavar="N")


def _phantom(arguments: argparse.Namespace) -> Result:
    from vol3d import phantom

    path = phantom.write(
        arguments.out,
        studies=arguments.studies,
        seed=arguments.seed,
        shape=tuple(arguments.shape),
        findings=arguments.findings,
        prevalence=arguments.prevalence,
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
    verb.add_argument("--compression", choices=["blosc2"], help="half the disk, more time to read")


def _prepare(arguments: argparse.Namespace) -> Result:
    from vol3d.data.cache import prepare
    from vol3d.volume.grid import Grid

    grid = Grid.load(arguments.grid) if arguments.grid.endswith(".json") else Grid.preset(arguments.grid)
    report = prepare(
        arguments.manifest,
        grid,
        arguments.cache,
        workers=arguments.workers,
        compression=arguments.compression,
        progress=True,
    )
    data = {**asdict(report), "failures": None if report.failures is None else str(report.failures)}
    text = f"{report.studies} studies: {report.made} made, {report.ready} were ready, {report.failed} failed"
    if report.failures is not None:
        text += f", see {report.failures}"
    return Result(data, f"{text}; {report.seconds:.1f} s", code=1 if report.failed else 0)


COMMANDS = {
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
}
