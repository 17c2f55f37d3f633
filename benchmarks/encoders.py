"""Encoders against their peers: time and peak memory of forward, and of forward and backward, in one run.

    python benchmarks/encoders.py --json encoders.json            # M3D's and Merlin's own sizes: minutes on a CPU
    python benchmarks/encoders.py --only "I3D train" --repeats 1  # one row
    python benchmarks/encoders.py --tiny                          # seconds, to see that it works
    python benchmarks/encoders.py --device cuda --dtype bfloat16

Peers: MONAI's ViT at M3D's size, and Merlin's network when merlin-vlm is installed (pip install --no-deps merlin-vlm).
Every measurement is a process of its own, the two sides in turn, so that neither inherits the other's memory or the
machine's mood; the ratios are medians of ours over theirs, below 1 where we are better. Peak memory is what the process
took beyond the model and its input.
"""

from __future__ import annotations

import argparse
import datetime
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
from typing import Any

import torch
from torch import Tensor, nn

import vol3d

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHAPES = {"ViT": (256, 256, 32), "I3D": (224, 224, 160)}
HALF = {"ViT": (128, 128, 16), "I3D": (128, 128, 80)}
TINY = {"ViT": (64, 64, 16), "I3D": (64, 64, 32)}
SIZES = {"full": SHAPES, "half": HALF, "tiny": TINY}
PEERS = {"ViT": "MONAI ViT, M3D's size", "I3D": "merlin-vlm I3ResNet152"}
# work → targets for time and for memory
WORKS = {
    "ViT forward": (0.55, None),
    "ViT train": (0.75, 0.40),
    "I3D forward": (None, None),
    "I3D train": (0.60, 1.0),
}

CONDITIONS = ("dtype", "threads", "clock", "batch", "warmup", "repeats", "rounds")


def build(case: str, side: str, size: str) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]] | None:
    """A network and how to run it; None when the peer is not installed."""
    shape, tiny = SIZES[size][case], size == "tiny"
    if case == "ViT":
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


def measure(work: str, side: str, args: argparse.Namespace) -> dict[str, float] | None:
    """Median seconds and peak MiB beyond model and input; None without the peer."""
    case, mode = work.split()
    torch.manual_seed(0)
    built = build(case, side, args.size)
    if built is None:
        return None
    net, run = built
    net = net.to(args.device).train(mode == "train")
    image = torch.rand(args.batch, 1, *SIZES[args.size][case], device=args.device)
    # Merlin's checkpointed stages let a gradient through only when their input asks for one.
    image.requires_grad_(mode == "train" and side == "peer" and case == "I3D")
    cuda, clock = args.device == "cuda", time.process_time if args.clock == "cpu" else time.perf_counter
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 2**20 if cuda else resident_peak()
    seconds = []
    for _ in range(args.warmup + args.repeats):
        start = clock()
        with (
            torch.set_grad_enabled(mode == "train"),
            torch.autocast(args.device, dtype=getattr(torch, args.dtype), enabled=args.dtype != "float32"),
        ):
            given = run(net, image)
        if mode == "train":
            net.zero_grad(set_to_none=True)
            given.float().square().mean().backward()
        del given
        if cuda:
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    after = torch.cuda.max_memory_allocated() / 2**20 if cuda else resident_peak()
    return {"seconds": statistics.median(seconds[args.warmup :]), "mib": after - before}


def resident_peak() -> float:
    """MiB; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def compare(work: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row: both sides in turn."""
    sides: dict[str, list[dict[str, float]]] = {"vol3d": [], "peer": []}
    for _ in range(args.rounds):
        for side, results in sides.items():
            result = in_a_process(work, side, args)
            if result is not None:
                results.append(result)
    ours, theirs = (
        {key: statistics.median(r[key] for r in results) for key in ("seconds", "mib")} if results else None
        for results in sides.values()
    )
    case, target = work.split()[0], WORKS[work]
    row: dict[str, Any] = {
        "work": work, "peer": PEERS[case], "shape": SIZES[args.size][case], "ours_s": ours["seconds"],
        "ours_mib": ours["mib"], "target": target[0], "memory_target": target[1],
        **{name: getattr(args, name) for name in CONDITIONS},
    }  # fmt: skip
    if theirs is not None:
        row |= {"peer_s": theirs["seconds"], "peer_mib": theirs["mib"]}
        row |= {"ratio": row["ours_s"] / row["peer_s"], "memory_ratio": row["ours_mib"] / max(row["peer_mib"], 1)}
    return row


def in_a_process(work: str, side: str, args: argparse.Namespace) -> dict[str, float] | None:
    """One measurement in a fresh Python."""
    options = ("device", "dtype", "batch", "repeats", "warmup", "threads", "clock", "size")
    passed = [text for name in options for text in (f"--{name}", str(getattr(args, name)))]
    command = [sys.executable, __file__, "--one", work, side, *passed]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{work} of {side} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def show(row: dict[str, Any]) -> None:
    said = [f"vol3d {row['ours_s']:.3f} s {row['ours_mib']:.0f} MiB"]
    if "ratio" in row:
        said.append(f"{row['peer']} {row['peer_s']:.3f} s {row['peer_mib']:.0f} MiB")
        for name, value, target in (("time", "ratio", "target"), ("memory", "memory_ratio", "memory_target")):
            said.append(f"{name} {row[value]:.2f}" + ("" if row[target] is None else f" (at most {row[target]})"))
    sys.stderr.write(f"{row['work']}: " + " · ".join(said) + "\n")


def write(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """The report to `--json`; with `--record` to benchmarks/results/DATE-encoders-DEVICE.json as well."""
    name = torch.cuda.get_device_name() if args.device == "cuda" else processor()
    report = {
        "date": datetime.date.today().isoformat(), "device": args.device, "device_name": name,
        "vol3d": vol3d.__version__, "torch": torch.__version__, "python": platform.python_version(), "size": args.size,
    }  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(report | {"rows": rows}, indent=2) + "\n", encoding="utf-8")
    if args.record:
        RESULTS.mkdir(exist_ok=True)
        kind = "encoders" if args.size == "full" else f"encoders-{args.size}"
        path = RESULTS / f"{report['date']}-{kind}-{args.device}.json"
        measured = {(row["work"], row["dtype"]) for row in rows}
        earlier = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
        kept = [row for row in earlier if (row["work"], row["dtype"]) not in measured]
        path.write_text(json.dumps(report | {"rows": kept + rows}, indent=2) + "\n", encoding="utf-8")


def processor() -> str:
    """The CPU's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--record", action="store_true", help="write them into benchmarks/results too")
    parser.add_argument("--only", nargs="+", default=list(WORKS), choices=list(WORKS), metavar="WORK")
    parser.add_argument("--size", default="full", choices=list(SIZES), help="half: an eighth of the voxels")
    parser.add_argument("--tiny", dest="size", action="store_const", const="tiny", help="small networks and volumes")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="runs a process")
    parser.add_argument("--warmup", type=int, default=1, help="runs before them")
    parser.add_argument("--rounds", type=int, default=1, help="processes a side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu: where others use the machine too"
    )
    parser.add_argument("--one", nargs=2, metavar=("WORK", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        sys.stdout.write(json.dumps(measure(*args.one, args)) + "\n")
        return
    rows = []
    for work in args.only:
        rows.append(compare(work, args))
        show(rows[-1])
        write(rows, args)  # after every row: a run that is stopped keeps what it has


if __name__ == "__main__":
    main()
