"""Verbs around training: the demo, foreign weights, mixing two models."""

from __future__ import annotations

import argparse

from vol3d.commands.command import Command, Result, at_least


def _demo_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--out", default="runs/demo", help="folder of the run (default: runs/demo)")
    verb.add_argument("--seed", type=at_least(0), default=0, help="of phantoms and weights (default: 0)")


def _demo(arguments: argparse.Namespace) -> Result:
    from vol3d.demo import demo

    summary = demo(arguments.out, seed=arguments.seed)
    return Result(summary.data, summary.text)


def _convert_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", metavar="NAME", help="the peer: m3d-clip, merlin, ct-clip, segvol, radfm …")
    verb.add_argument(
        "weights", metavar="WEIGHTS", help="the peer's checkpoint, a folder of its shards, or its name on the Hub"
    )
    verb.add_argument("out", metavar="OUT", help="folder to write")


def _convert(arguments: argparse.Namespace) -> Result:
    from vol3d.encoders.convert import convert

    done = convert(arguments.name, arguments.weights, arguments.out)
    data = {key: str(value) if key == "folder" else value for key, value in vars(done).items()}
    text = (
        f"{done.tensors} tensors, {done.parameters:,} parameters: {done.folder}\n"
        f'load:   vol3d.encoders.create("{done.encoder}", weights="{done.folder}")'
    )
    if done.projector:
        text += f"\nbeside: projector.safetensors of {done.projector}"
    return Result(data, text)


def _merge_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("base", metavar="BASE", help="folder of the model fine-tuning began from")
    verb.add_argument("tuned", metavar="TUNED", help="folder of the fine-tuned model")
    verb.add_argument("out", metavar="OUT", help="folder to write")
    verb.add_argument("--alpha", type=float, default=0.5, help="share of the tuned weights (default: 0.5)")


def _merge(arguments: argparse.Namespace) -> Result:
    from vol3d.model.merging import merge

    folder = merge(arguments.base, arguments.tuned, arguments.out, alpha=arguments.alpha)
    data = {"model": str(folder), "alpha": arguments.alpha}
    return Result(data, f"{arguments.alpha:g} tuned + {1 - arguments.alpha:g} base: {folder}")


def _consolidate_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("checkpoint", metavar="CHECKPOINT", help="under RUN/checkpoints, a file or a folder of pieces")
    verb.add_argument("out", metavar="OUT", help="folder to write")
    verb.add_argument("--config", metavar="RECIPE", help="default: RUN/recipe.yaml")
    verb.add_argument("--merge", action="store_true", help="add LoRA adapters into the weights they adapt")


def _consolidate(arguments: argparse.Namespace) -> Result:
    from vol3d.training.consolidate import consolidate

    folder = consolidate(arguments.checkpoint, arguments.config, arguments.out, merge=arguments.merge)
    return Result({"model": str(folder), "merged": arguments.merge}, f"model: {folder}")


def _info_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", nargs="?", metavar="MODEL", help="folder of a saved model")


def _info(arguments: argparse.Namespace) -> Result:
    from vol3d.info import info

    data = info(arguments.model)
    lines = [f"{name}: {value}" for name, value in data.items() if name != "card"]
    return Result(data, "\n".join([*lines, *(["", data["card"].strip()] if "card" in data else [])]))


def _plan_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--config",
        required=True,
        action="append",
        metavar="RECIPE",
        help="also a run's recipe.yaml; again for overlays",
    )
    verb.add_argument("--gpu", type=float, required=True, metavar="GB", help="memory of the card in GB")
    verb.add_argument("--tflops", type=float, help="its dense bf16 peak (default: of a common card of this size)")
    verb.add_argument(
        "--set",
        action="extend",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="options of the recipe: data.batch_size=4",
    )


def _plan(arguments: argparse.Namespace) -> Result:
    from vol3d.plan import plan

    recipe = [f"--config={name}" for name in arguments.config] + [f"--{option}" for option in arguments.set]
    made = plan(recipe, gpu_gb=arguments.gpu, tflops=arguments.tflops)
    return Result(made.to_dict(), str(made), code=0 if made.fits else 1)


COMMANDS = {
    "demo": Command(
        "phantoms → train → evaluate → page, on a CPU, offline", "vol3d demo --out runs/demo", _demo_arguments, _demo
    ),
    "convert": Command(
        "turn a peer's weights into ours",
        "vol3d convert m3d-clip pretrained_ViT.bin weights/m3d-clip",
        _convert_arguments,
        _convert,
    ),
    "merge": Command(
        "weights between a base model and its fine-tuned one",
        "vol3d merge runs/base/model runs/tuned/model runs/merged --alpha 0.5",
        _merge_arguments,
        _merge,
    ),
    "consolidate": Command(
        "a run's checkpoint, in however many pieces, as a model folder",
        "vol3d consolidate runs/mine/checkpoints/last.ckpt runs/mine/model --merge",
        _consolidate_arguments,
        _consolidate,
    ),
    "info": Command(
        "versions, devices, and what a model was trained on", "vol3d info runs/demo/model", _info_arguments, _info
    ),
    "plan": Command(
        "memory and time of a recipe, before you train",
        "vol3d plan --config report_generation.yaml --gpu 24 --set data.batch_size=4",
        _plan_arguments,
        _plan,
    ),
}
