"""Prompts over a volume larger than the grid, against the peers' way: time of the windows, memory of the stitching.

    python benchmarks/sliding_window.py --json sliding.json       # 512 × 512 × 200, minutes on a CPU
    python benchmarks/sliding_window.py --tiny                    # seconds, to see that it works

Two rows. "windows": each window encoded once for all prompts, against once for each prompt, as SegVol does, with the
same ViT-B and the same decoder. On a CPU a few of the windows are timed (`--windows`) and multiplied by their number;
every window costs the same. "stitching": what putting all windows together takes beyond the volume itself, all of
them, with a predictor that costs nothing, against MONAI's sliding_window_inference. Each measurement is a process of
its own. Ratios are ours over theirs, below 1 where we are better.
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
from pathlib import Path
from typing import Any

import torch

import vol3d
from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.model.sliding import Windows, stitch
from vol3d.tasks import PromptSegmentation

RESULTS = Path(__file__).parent / "results"
NAMES = ["liver", "spleen", "left kidney", "right kidney", "left pleural effusion"]
FULL = {"shape": (512, 512, 200), "size": (160, 160, 104), "encoder": "vit3d-base"}
TINY = {"shape": (64, 64, 40), "size": (32, 32, 24), "encoder": "vit3d-tiny"}
TARGETS = {"windows": 0.30, "stitching": 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--record", action="store_true", help="write a dated file into results/ as well")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--windows", type=int, default=2, help="how many to time (default: 2)")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--work", choices=["windows", "stitching"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    case = TINY if arguments.tiny else FULL
    if arguments.side:
        measure = _windows if arguments.work == "windows" else _stitching
        sys.stdout.write(json.dumps(measure(arguments, case)))
        return
    rows = [_row(work, arguments, case) for work in ("windows", "stitching")]
    report = {
        "rows": rows,
        "volume": case["shape"],
        "window": case["size"],
        "windows": len(Windows(case["shape"], case["size"])),
        "encoder": case["encoder"],
        "prompts": len(NAMES),
        "timed_windows": arguments.windows,
        "device": arguments.device if arguments.device != "cpu" else f"cpu, {torch.get_num_threads()} threads",
        "versions": {"vol3d": vol3d.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }
    recorded = RESULTS / f"{report['date']}-sliding_window-{arguments.device}.json" if arguments.record else None
    for path in filter(None, (arguments.json, recorded)):
        path.write_text(json.dumps(report, indent=1) + "\n")


def _row(work: str, arguments: argparse.Namespace, case: dict[str, Any]) -> dict[str, Any]:
    """Both sides of one work in turn, each in processes of their own."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    for _ in range(arguments.repeats):
        for side, results in found.items():
            command = [sys.executable, __file__, "--side", side, "--work", work, "--device", arguments.device]
            command += ["--windows", str(arguments.windows), *(["--tiny"] if arguments.tiny else [])]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
            if done.returncode:
                raise SystemExit(f"{work}, {side}: {done.stderr.strip().splitlines()[-1]}")
            results.append(json.loads(done.stdout))
    ours, peer = ({key: statistics.median(r[key] for r in rs) for key in rs[0]} for rs in found.values())
    row = {
        "work": f"{work}: {len(NAMES)} prompts over {' × '.join(map(str, case['shape']))}",
        "peer": "encoded once a prompt" if work == "windows" else "MONAI sliding_window_inference",
        "ours_s": round(ours["seconds"], 2),
        "peer_s": round(peer["seconds"], 2),
        "ratio": round(ours["seconds"] / peer["seconds"], 3),
        "memory_ratio": round(ours["mib"] / peer["mib"], 3),
        "ours_mib": round(ours["mib"]),
        "peer_mib": round(peer["mib"]),
    }
    judged = "ratio" if work == "windows" else "memory_ratio"
    row["at_most"], row["met"] = TARGETS[work], row[judged] <= TARGETS[work]
    sys.stdout.write(
        f"{work:10} {row['ours_s']:9.2f} s against {row['peer_s']:9.2f} s: {row['ratio']:.2f}; "
        f"{row['ours_mib']} MiB against {row['peer_mib']} MiB: {row['memory_ratio']:.2f} "
        f"({judged.replace('_', ' ')} at most {row['at_most']})\n"
    )
    return row


@torch.inference_mode()
def _windows(arguments: argparse.Namespace, case: dict[str, Any]) -> dict[str, float]:
    """Seconds of all windows, from a few of them."""
    torch.manual_seed(0)
    model = vol3d.VolumeLM(vol3d.encoders.create(case["encoder"])).eval().to(arguments.device)
    task = PromptSegmentation(model).eval().to(arguments.device)
    image = torch.rand(1, model.encoder.in_channels, *case["size"], device=arguments.device)
    affine = torch.eye(4, dtype=torch.float64, device=arguments.device)[None]
    batch = Batch([Study(study="benchmark", image=Path("benchmark"))], image, affine)
    groups = [NAMES] if arguments.side == "ours" else [[name] for name in NAMES]

    def window() -> None:
        for names in groups:
            task.logits(model, model.encode(image, affine), batch, names)

    if arguments.tiny or arguments.device != "cpu":
        window()  # what the first call makes, which is nothing beside a window of full size on a CPU
    before, start = _peak(), time.process_time() if arguments.device == "cpu" else time.perf_counter()
    for _ in range(arguments.windows):
        window()
    if arguments.device != "cpu":
        torch.cuda.synchronize()
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    seconds = (clock() - start) / arguments.windows
    return {"seconds": seconds * len(Windows(case["shape"], case["size"])), "mib": _peak() - before}


@torch.inference_mode()
def _stitching(arguments: argparse.Namespace, case: dict[str, Any]) -> dict[str, float]:
    """Seconds and peak MiB beyond the volume, from windows to the masks of all prompts."""
    from monai.inferers import sliding_window_inference

    volume = torch.rand(1, 1, *case["shape"])
    said = torch.rand(len(NAMES), *case["size"]) - 0.5
    before, start = _peak(), time.process_time()
    if arguments.side == "ours":
        masks = torch.zeros(len(NAMES), *case["shape"], dtype=torch.bool)
        for place, slab in stitch(Windows(case["shape"], case["size"]), lambda window: said.clone(), len(NAMES)):
            torch.gt(slab, 0, out=masks[:, place])
    else:
        masks = (
            sliding_window_inference(volume, case["size"], 1, lambda x: said[None].clone(), 0.5, mode="gaussian")[0] > 0
        )
    return {"seconds": time.process_time() - start, "mib": _peak() - before, "voxels": float(masks.sum())}


def _peak() -> float:
    """MiB that this process has held at most; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
