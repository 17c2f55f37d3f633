"""Verbs on data: make it, audit it, cache it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from vol3d.commands.command import Command, Result, at_least

if TYPE_CHECKING:
    from vol3d.data.cache import FillReport


def _phantom_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("out", metavar="OUT", help="folder to write")
    verb.add_argument("--studies", type=int, required=True, metavar="N")
    verb.add_argument("--seed", type=at_least(0), default=0, metavar="S")
    verb.add_argument("--shape", type=int, nargs=3, default=(160, 160, 128), metavar=("X", "Y", "Z"))
    verb.add_argument("--findings", action="extend", nargs="+", metavar="NAME", help="only these (default: all 24)")
    mix = "three in ten studies normal, the others with one to four"
    verb.add_argument("--prevalence", type=float, metavar="P", help=f"chance of each finding (default: {mix})")
    verb.add_argument("--twins", type=at_least(0), default=0, metavar="N", help="pairs that differ in one finding")
    verb.add_argument("--workers", type=at_least(0), default=1, metavar="N")


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
    verb.add_argument(
        "--workers", type=at_least(0), default=0, metavar="N", help="processes beside this one (default: 0)"
    )
    verb.add_argument("--page", metavar="HTML", help="also write a page with thumbnails")
    verb.add_argument("--resume", metavar="JSONL", help="keeps what each volume showed, to go on after a stop")


def _doctor(arguments: argparse.Namespace) -> Result:
    from vol3d.data.doctor import doctor

    found = doctor(arguments.manifest, arguments.workers, resume=arguments.resume, page=arguments.page, progress=True)
    lines = [f"{row['severity']:8}{row['check']:20}{row['study'] or '(all)'}: {row['message']}" for row in found]
    errors, warnings = (sum(row["severity"] == name for row in found) for name in ("error", "warning"))
    of_a_study = errors or any(row["severity"] == "warning" and row["study"] for row in found)
    text = "\n".join([*lines, f"{errors} errors, {warnings} warnings"])
    return Result({"findings": found, "errors": errors, "warnings": warnings}, text, code=1 if of_a_study else 0)


def _prepare_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("manifest", metavar="MANIFEST")
    verb.add_argument("--grid", metavar="NAME", help="a preset's name, or a grid.json")
    verb.add_argument("--features", metavar="MODEL_OR_RECIPE", help="encode with its frozen encoder, on its own grid")
    verb.add_argument("--cache", required=True, metavar="DIR")
    verb.add_argument("--shard", metavar="I/N", help="only the I-th of N shards, from 0 (default: a SLURM array's)")
    verb.add_argument("--workers", type=at_least(0), default=1, metavar="N")
    verb.add_argument(
        "--batch-size", type=at_least(1), metavar="N", help="studies that --features encodes at once (default: 8)"
    )
    verb.add_argument("--compression", choices=["blosc2"], help="of volumes: half the disk, more time to read")
    verb.add_argument("--device", metavar="NAME", help="where --features encodes: cpu, cuda, cuda:1 (default: a GPU)")


def _prepare(arguments: argparse.Namespace) -> Result:
    from vol3d.data.shards import parse_shard, shard_of_file, shard_of_job

    if (arguments.grid is None) == (arguments.features is None):
        raise ValueError("prepare takes one of --grid (volumes) and --features (volumes and what an encoder makes)")
    encoding = {"--device": arguments.device, "--batch-size": arguments.batch_size}
    if arguments.features is None and (given := [option for option, value in encoding.items() if value is not None]):
        raise ValueError(f"prepare --grid takes no {given[0]}: it encodes nothing; leave it out, or ask for --features")
    given = None if arguments.shard is None else parse_shard(arguments.shard)
    shard = given or shard_of_file(arguments.manifest) or shard_of_job()
    report = _volumes(arguments, shard) if arguments.features is None else _features(arguments, shard)
    data = {**asdict(report), "failures": None if report.failures is None else str(report.failures)}
    data["shard"] = None if shard is None else f"{shard[0]}/{shard[1]}"
    text = "" if shard is None else f"shard {data['shard']}: "
    text += f"{report.studies} studies: {report.made} made, {report.ready} were ready, {report.failed} failed"
    if report.failures is not None:
        text += f", see {report.failures}"
    return Result(data, f"{text}; {report.seconds:.1f} s", code=1 if report.failed else 0)


def _volumes(arguments: argparse.Namespace, shard: tuple[int, int] | None) -> FillReport:
    from vol3d.data.cache import prepare
    from vol3d.data.shards import prepare_shard
    from vol3d.volume.grid import Grid

    grid = Grid.load(arguments.grid) if arguments.grid.endswith(".json") else Grid.preset(arguments.grid)
    options = {"workers": arguments.workers, "compression": arguments.compression, "progress": True}
    if shard is None:
        return prepare(arguments.manifest, grid, arguments.cache, **options)
    return prepare_shard(arguments.manifest, grid, arguments.cache, *shard, **options)


def _features(arguments: argparse.Namespace, shard: tuple[int, int] | None) -> FillReport:
    from vol3d.training.features import prepare_features

    return prepare_features(
        arguments.manifest,
        arguments.features,
        arguments.cache,
        shard=shard,
        batch_size=8 if arguments.batch_size is None else arguments.batch_size,
        workers=arguments.workers,
        device=arguments.device,
        compression=arguments.compression,
        progress=True,
    )


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
        "fill the cache of volumes on a grid, and of a frozen encoder's features",
        "vol3d prepare data/manifest.jsonl --grid merlin --cache cache --workers 4",
        _prepare_arguments,
        _prepare,
    ),
}
