"""Verbs that judge."""

from __future__ import annotations

import argparse

from vol3d.commands.command import Command, Result, add_device, add_reading, at_least, trained_model


def _evaluate_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="folder of a saved model")
    verb.add_argument("manifest", metavar="MANIFEST", help="or, with --suite, the dataset's own folder or JSON")
    verb.add_argument("--out", required=True, metavar="DIR")
    verb.add_argument("--split", default=None, help="only this split (default: test, or all when there is none)")
    verb.add_argument("--batch-size", type=at_least(1), default=16, metavar="N")
    add_device(verb)
    add_reading(verb)
    verb.add_argument("--cuda-graph", action="store_true", help="on a GPU: write long answers by one captured graph")
    verb.add_argument(
        "--seed", type=at_least(0), default=0, help="of the bootstrap and the blind baseline (default: 0)"
    )
    verb.add_argument(
        "--replicates", type=at_least(1), default=1000, metavar="N", help="bootstrap draws (default: 1000)"
    )
    verb.add_argument(
        "--predictions", metavar="FILE", help="score these rows without showing the model a volume (also a folder)"
    )
    verb.add_argument("--overwrite", action="store_true", help="throw away predictions made otherwise in --out")
    verb.add_argument(
        "--probes",
        action="extend",
        nargs="*",
        default=None,
        metavar="NAME",
        help="also show changed volumes: blank, shuffled, mirror, erase … (default: all)",
    )
    verb.add_argument("--by", action="append", default=[], metavar="FIELD", help="also score groups of meta.FIELD")
    verb.add_argument("--duplicates", action="store_true", help="read every volume to find copies across splits")
    verb.add_argument("--base", metavar="DIR", help="an evaluation to compare with (default: the base's, where known)")
    verb.add_argument("--suite", choices=("m3d-bench", "merlin"), help="a published benchmark from its own files")
    verb.add_argument("--bertscore", metavar="FOLDER", help="also BERTScore, with the local model in FOLDER")
    verb.add_argument("--meteor", metavar="FOLDER", help="also METEOR, with NLTK's data in FOLDER")
    verb.add_argument("--radeval", action="store_true", help="also RadEval's scores (extra: vol3d[radeval])")
    verb.add_argument("--judge", metavar="FOLDER", help="also let the local language model in FOLDER judge reports")


def _evaluate(arguments: argparse.Namespace) -> Result:
    from vol3d.evaluation.run import evaluate
    from vol3d.evaluation.summary import summary
    from vol3d.evaluation.wording import wording

    probes = arguments.probes
    options = {
        "out": arguments.out,
        "split": arguments.split,
        "batch_size": arguments.batch_size,
        "seed": arguments.seed,
        "replicates": arguments.replicates,
        "predictions": arguments.predictions,
        "workers": arguments.workers,
        "overwrite": arguments.overwrite,
        "probes": probes is not None and (probes or True),
        "by": arguments.by,
        "duplicates": arguments.duplicates,
        "base": arguments.base,
        "extra": wording(
            bertscore=arguments.bertscore,
            meteor=arguments.meteor,
            radeval=arguments.radeval,
            judge=arguments.judge,
            replicates=arguments.replicates,
            seed=arguments.seed,
        ),
        "progress": True,
    }
    model = trained_model(arguments)
    if arguments.cuda_graph and model.model.device.type != "cuda":
        raise ValueError(f"--cuda-graph is for a GPU and the model runs on {model.model.device}: leave one of them out")
    if arguments.cuda_graph and model.model.language is not None:
        model.model.language.cuda_graph = True
    if arguments.suite:
        from vol3d.evaluation.suites import evaluate_suite

        result = evaluate_suite(arguments.suite, model, arguments.manifest, **options)
    else:
        result = evaluate(model, arguments.manifest, **options)
    return Result(result, summary(result))


def _compare_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("first", metavar="A", help="folder of an evaluation: the model in question")
    verb.add_argument("second", metavar="B", help="folder of another on the same manifest: the base model")
    verb.add_argument("--out", metavar="DIR", help="for comparison.json and comparison.html (default: A)")
    verb.add_argument("--manifest", metavar="MANIFEST", help="where the truth is (default: the one A names)")
    verb.add_argument("--seed", type=at_least(0), default=0, help="of the bootstrap (default: 0)")
    verb.add_argument(
        "--replicates", type=at_least(1), default=1000, metavar="N", help="bootstrap draws (default: 1000)"
    )


def _compare(arguments: argparse.Namespace) -> Result:
    from vol3d.evaluation.compare import compare, comparison_text

    result = compare(
        arguments.first,
        arguments.second,
        manifest=arguments.manifest,
        out=arguments.out or arguments.first,
        replicates=arguments.replicates,
        seed=arguments.seed,
    )
    return Result(result, comparison_text(result))


COMMANDS = {
    "evaluate": Command(
        "score a model on a manifest, with intervals and baselines",
        "vol3d evaluate runs/demo/model data/manifest.jsonl --out evaluation --probes --by sex",
        _evaluate_arguments,
        _evaluate,
    ),
    "compare": Command(
        "two evaluations on the same studies: differences, intervals, p, wins and losses",
        "vol3d compare runs/tuned/evaluation runs/base/evaluation --out comparison",
        _compare_arguments,
        _compare,
    ),
}
