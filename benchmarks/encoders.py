"""Encoders against their peers: time and peak memory of forward, and of forward and backward, in one run.

    python benchmarks/encoders.py --json encoders.json            # M3D's and Merlin's own sizes: minutes on a CPU
    python benchmarks/encoders.py --tiny                          # seconds, to see that it works
    python benchmarks/encoders.py --device cuda --dtype bfloat16

Peers: MONAI's ViT at M3D's size, and Merlin's network when merlin-vlm is installed (pip install --no-deps merlin-vlm).
Every measurement is a process of its own, the two sides in turn, so that neither inherits the other's memory or the
machine's mood; the ratios are medians of ours over theirs, below 1 where we are better. Peak memory is what the process
took beyond the model and its input.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import vol3d

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {"m3d": (256, 256, 32), "merlin": (224, 224, 160)}
TINY = {"m3d": (64, 64, 16), "merlin": (64, 64, 32)}
TARGETS = {"m3d/forward/time": 1.0, "m3d/train/time": 1.0, "m3d/train/memory": 0.8}


def build(case: str, side: str, *, tiny: bool) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]] | None:
    """A network and how to run it; None when the peer is not installed."""
    shape = (TINY if tiny else SHAPES)[case]
    if case == "m3d":
        sizes = {"embed_dim": 192, "depth": 2, "num_heads": 3} if tiny else {}
        if side == "vol3d":
            grid = tuple(size // patch for size, patch in zip(shape, (16, 16, 4), strict=True))
            return vol3d.encoders.create("m3d-clip", **(sizes | {"grid_size": grid})), lambda net, x: net(x).tokens
        from monai.networks.nets import ViT

        width, depth, heads = (192, 2, 3) if tiny else (768, 12, 12)
        net = ViT(1, (shape[2], shape[0], shape[1]), (4, 16, 16), width, 4 * width, depth, heads,
                  proj_type="perceptron", pos_embed_type="learnable", classification=True)  # fmt: skip
        net.classification_head = nn.Identity()
        return net, lambda net, x: net(x.permute(0, 1, 4, 2, 3))[0]
    layers = (1, 1, 1, 1) if tiny else (3, 8, 36, 3)
    if side == "vol3d":
        net = vol3d.encoders.create("merlin-i3d-resnet152", layers=layers, checkpointing=True)
        return net, lambda net, x: net.head_outputs(net(x))["contrastive"]
    sys.path.insert(0, str(ROOT / "tests"))
    import merlin_peer

    peer = merlin_peer.i3resnet(layers)
    return None if peer is None else (peer, lambda net, x: net(x)[0])


def measure(case: str, side: str, mode: str, args: argparse.Namespace) -> dict[str, float] | None:
    """Median seconds and peak MiB beyond model and input; None without the peer."""
    torch.manual_seed(0)
    built = build(case, side, tiny=args.tiny)
    if built is None:
        return None
    net, run = built
    net = net.to(args.device).train(mode == "train")
    image = torch.rand(args.batch, 1, *(TINY if args.tiny else SHAPES)[case], device=args.device)
    # Merlin's checkpointed stages let a gradient through only when their input asks for one.
    image.requires_grad_(mode == "train" and side == "peer" and case == "merlin")
    cuda = args.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 2**20 if cuda else resident_peak()
    seconds = []
    for _ in range(args.repeats + 1):
        start = time.perf_counter()
        with (
            torch.set_grad_enabled(mode == "train"),
            torch.autocast(args.device, dtype=getattr(torch, args.dtype), enabled=args.dtype != "float32"),
        ):
            given = run(net, image)
        if mode == "train":
            net.zero_grad(set_to_none=True)
            given.float().square().mean().backward()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    after = torch.cuda.max_memory_allocated() / 2**20 if cuda else resident_peak()
    return {"seconds": statistics.median(seconds[1:]), "mib": after - before}


def resident_peak() -> float:
    """MiB; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def compare(args: argparse.Namespace) -> dict[str, object]:
    """Every case and mode, both sides in turn."""
    found: dict[str, object] = {}
    for case in args.cases:
        for mode in ("forward", "train"):
            sides: dict[str, list[dict[str, float]]] = {"vol3d": [], "peer": []}
            for _ in range(args.rounds):
                for side, results in sides.items():
                    result = in_a_process(case, side, mode, args)
                    if result is not None:
                        results.append(result)
            entry: dict[str, object] = {
                side: {key: statistics.median(r[key] for r in results) for key in ("seconds", "mib")}
                for side, results in sides.items()
                if results
            }
            if sides["peer"]:
                ours, theirs = entry["vol3d"], entry["peer"]
                entry["ratio"] = {
                    "time": ours["seconds"] / theirs["seconds"],
                    "memory": ours["mib"] / max(theirs["mib"], 1),
                }
            found[f"{case}/{mode}"] = entry
            show(f"{case}/{mode}", entry)
    return found


def in_a_process(case: str, side: str, mode: str, args: argparse.Namespace) -> dict[str, float] | None:
    """One measurement in a fresh Python."""
    passed = ["--device", args.device, "--dtype", args.dtype, "--batch", str(args.batch)]
    passed += ["--repeats", str(args.repeats), "--threads", str(args.threads)] + ["--tiny"] * args.tiny
    command = [sys.executable, __file__, "--one", case, side, mode, *passed]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{case}/{mode} of {side} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def show(name: str, entry: dict[str, object]) -> None:
    sides = [f"{side} {entry[side]['seconds']:.3f} s {entry[side]['mib']:.0f} MiB" for side in ("vol3d", "peer")
             if side in entry]  # fmt: skip
    ratios = [
        f"{key} {value:.2f}" + (f" (target {TARGETS[f'{name}/{key}']})" if f"{name}/{key}" in TARGETS else "")
        for key, value in entry.get("ratio", {}).items()
    ]
    sys.stderr.write(f"{name}: " + " · ".join(sides + ratios) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--cases", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--tiny", action="store_true", help="small networks and volumes")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="runs a process, after one to warm up")
    parser.add_argument("--rounds", type=int, default=1, help="processes a side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=3, metavar=("CASE", "SIDE", "MODE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        sys.stdout.write(json.dumps(measure(*args.one, args)) + "\n")
        return
    report = {
        "vol3d": vol3d.__version__, "torch": torch.__version__, "machine": platform.machine(), "device": args.device,
        "dtype": args.dtype, "threads": args.threads, "tiny": args.tiny, "batch": args.batch, "targets": TARGETS,
    }  # fmt: skip
    report["results"] = compare(args)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
