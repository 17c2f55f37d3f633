"""Verbs that judge."""

from __future__ import annotations

import argparse

from vol3d.commands.command import Command, Result


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


COMMANDS = {
    "evaluate": Command(
        "score a model on a manifest, with intervals and baselines",
        "vol3d evaluate runs/demo/model data/manifest.jsonl --out evaluation",
        _evaluate_arguments,
        _evaluate,
    ),
}
