"""From a file to Merlin's grid, cold and warm, against MONAI's PersistentDataset and Merlin's own pipeline, in one run.

    python benchmarks/data.py --json data.json      # 512 × 512 × 200, some minutes on a CPU
    python benchmarks/data.py --tiny                # seconds, to see that it works

What each row measures, per volume:

cold             the gzipped NIfTI → the windowed float tensor a network gets, the cache entry written on the way, as
                 all three do; every voxel is looked at. `memory_ratio` is its peak above what was held before.
warm             cache entries → the batch of four that goes to the device, by each side's own dataset and DataLoader
                 (no worker processes). Ours is int16 HU in memory that is used again; the window comes later, on the
                 device, in the same step as before the network. The peers' is windowed float32, freshly stacked.
warm+window      the same, and our window on the CPU as well: both sides end with the same float32 batch.
item+window      one volume, no batch: cache entry → windowed float32, every voxel looked at. A PersistentDataset's
                 entry needs no window and no second copy here, so this is the peers' best case; no training loop
                 stops there.
warm, item (blosc2)  as above with our compressed entries.

`ratio` is the peer's time over ours, `cpu_ratio` the same in CPU time (what a busy machine disturbs less);
`memory_ratio` and `disk_ratio` (cache entry) are ours over the peer's. Every measurement is a process of its own with
one thread, the sides in turn; files and entries lie in the page cache. Merlin's side runs when merlin-vlm is installed
(pip install --no-deps merlin-vlm).
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache as cache_once
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch

SIDES = ("vol3d", "monai", "merlin")
BATCH = 4
WARM_VISITS = 8
PACKAGES = ("vol3d", "torch", "monai", "merlin-vlm", "numpy", "nibabel", "isal", "safetensors", "blosc2")


@dataclass
class Side:
    """How one side gets a volume, and a batch of all of them, as it is meant to be used.

    Args:
        item: number → windowed float32.
        batches: one pass over the volumes.
        window: what is still to be done to such a batch on the device.
    """

    item: Callable[[int], torch.Tensor]
    batches: Callable[[], Iterable[torch.Tensor]]
    window: Callable[[torch.Tensor], torch.Tensor] = lambda batch: batch


def make_volumes(folder: Path, *, tiny: bool) -> list[Path]:
    """A phantom with scanner noise, int16 HU, shifted a little in each file."""
    import nibabel
    import numpy as np

    from vol3d import phantom

    study = phantom.make(0, shape=(96, 96, 48) if tiny else (512, 512, 200))
    paths = [folder / f"{'small' if tiny else 'ct'}{number}.nii.gz" for number in range(BATCH)]
    for number, path in enumerate(paths):
        nibabel.save(nibabel.Nifti1Image(np.roll(study.hu, 2 * number, axis=2), study.affine), path)
    return paths


def ours(images: list[Path], cache: Path, compression: str | None = None) -> Side:
    from torch.utils.data import DataLoader

    from vol3d import Grid
    from vol3d.data.batch import collate
    from vol3d.data.dataset import VolumeDataset
    from vol3d.data.manifest import Manifest
    from vol3d.data.study import Study

    grid = Grid.preset("merlin")
    studies = Manifest(Study(study=path.name, image=path) for path in images)
    data = VolumeDataset(studies, grid, cache, compression=compression)
    loader = DataLoader(data, batch_size=BATCH, collate_fn=collate)
    out = torch.ones(BATCH, 1, *grid.shape)  # touched: on the device torch's allocator uses memory again
    return Side(
        lambda number: grid.window_hu(data[number].hu, out[number]),
        lambda: (batch.image for batch in loader),
        lambda image: grid.window_hu(image, out),
    )


def monai(images: list[Path], cache: Path) -> Side:
    """MONAI's own transforms and cache, with the numbers Merlin publishes."""
    from monai import transforms
    from monai.data import DataLoader, PersistentDataset

    steps = [
        transforms.LoadImaged("image", ensure_channel_first=True),
        transforms.Orientationd("image", axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
        transforms.Spacingd("image", pixdim=(1.5, 1.5, 3.0), mode="bilinear"),
        transforms.ScaleIntensityRanged("image", -1000, 1000, 0.0, 1.0, clip=True),
        transforms.ResizeWithPadOrCropd("image", (224, 224, 160)),
    ]
    rows = [{"image": str(path)} for path in images]
    data = PersistentDataset(rows, transforms.Compose(steps), cache_dir=cache)
    loader = DataLoader(data, batch_size=BATCH)
    return Side(lambda number: data[number]["image"], lambda: (batch["image"] for batch in loader))


def merlin(images: list[Path], cache: Path) -> Side | None:
    """Merlin's data set and loader from its package."""
    package = merlin_package()
    if package is None:
        return None
    loader = package.DataLoader([{"image": str(path)} for path in images], str(cache), BATCH, shuffle=False)
    loader.dataset.cache_dir = cache
    return Side(lambda number: loader.dataset[number]["image"], lambda: (batch["image"] for batch in loader))


@cache_once
def merlin_package() -> ModuleType | None:
    """Two files of merlin-vlm, because importing the whole asks for the Hub; None when it is not installed."""
    found = importlib.util.find_spec("merlin")
    if found is None:
        return None
    folder = Path(found.origin).parent / "data"
    sys.modules.update({name: ModuleType(name) for name in ("merlin", "merlin.data")})
    for name in ("monai_transforms", "dataloaders"):
        spec = importlib.util.spec_from_file_location(f"merlin.data.{name}", folder / f"{name}.py")
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules["merlin.data.dataloaders"]


def measure(name: str, folder: Path) -> dict[str, float] | None:
    """One process: seconds of the first visits (cold) and of the later ones (warm)."""
    torch.set_num_threads(1)
    side_of = {"vol3d": ours, "monai": monai, "merlin": merlin}[name]
    small, images = sorted(folder.glob("small*.nii.gz")), sorted(folder.glob("ct*.nii.gz"))
    with tempfile.TemporaryDirectory() as cache:  # small volumes first, so that no import is timed
        rehearse = side_of(small, Path(cache))
        if rehearse is None:
            return None
        everything(rehearse, len(small))
    with tempfile.TemporaryDirectory() as cache:
        side = side_of(images, Path(cache))
        # What is held now, not the highest so far: the rehearsal's own peak may only make the figure larger.
        before = memory_kb("VmRSS")
        first, cold = [], []
        for number in range(len(images)):
            cold.append(timed(lambda number=number: first.append(look(side.item(number)))))
            if number == 0:
                peak = memory_kb("VmHWM") - before
        found = {"mean": statistics.mean(first), "peak_kb": peak, "disk": disk(Path(cache))}
        found |= spread("cold", cold) | warm(side, len(images))
    if name == "vol3d" and importlib.util.find_spec("blosc2"):
        with tempfile.TemporaryDirectory() as cache:
            packed = warm(side_of(images, Path(cache), "blosc2"), len(images))
            found |= {f"{key} (blosc2)": value for key, value in packed.items()}
            found["disk (blosc2)"] = disk(Path(cache))
    return found


def memory_kb(name: str) -> int:
    """This process's own; getrusage's peak begins at that of the process that started it."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0])


def warm(side: Side, volumes: int) -> dict[str, float]:
    """Per volume, after a first pass that fills what is missing and lays everything into the page cache."""
    everything(side, volumes)
    loaded, windowed, items = [], [], []
    for _ in range(WARM_VISITS):
        loaded.append(timed(lambda: [None for _ in side.batches()], volumes))
        windowed.append(timed(lambda: [side.window(batch) for batch in side.batches()], volumes))
        items += [timed(lambda number=number: look(side.item(number))) for number in range(volumes)]
    return spread("warm", loaded) | spread("warm+window", windowed) | spread("item+window", items)


def everything(side: Side, volumes: int) -> None:
    for batch in side.batches():
        side.window(batch)
    for number in range(volumes):
        look(side.item(number))


def timed(work: Callable[[], object], volumes: int = 1) -> tuple[float, float]:
    """Wall and CPU seconds a volume."""
    wall, busy = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - wall) / volumes, (time.process_time() - busy) / volumes


def spread(work: str, seconds: list[tuple[float, float]]) -> dict[str, float]:
    wall, busy = zip(*seconds, strict=True)
    return {work: statistics.median(wall), f"{work} cpu": statistics.median(busy)}


def look(tensor: torch.Tensor) -> float:
    """Every voxel is looked at, because a memory-mapped entry costs nothing until it is."""
    return float(tensor.as_subclass(torch.Tensor).mean())


def disk(cache: Path) -> float:
    """Bytes of an entry."""
    return statistics.mean(path.stat().st_size for path in cache.rglob("*") if path.suffix in (".pt", ".safetensors"))


def run(side: str, folder: Path) -> dict[str, float] | None:
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(said.splitlines()[-1])


def compare(seen: list[dict[str, dict[str, float] | None]]) -> list[dict[str, object]]:
    rows = []
    for peer in SIDES[1:]:
        pairs = [(one["vol3d"], one[peer]) for one in seen if one[peer] is not None]
        for work in ("cold", "warm", "warm+window", "item+window", "warm (blosc2)", "item+window (blosc2)"):
            theirs, packed = work.removesuffix(" (blosc2)"), " (blosc2)" if "blosc2" in work else ""
            mine = theirs + packed
            if not pairs or mine not in pairs[0][0]:
                continue
            cpu = [them[f"{theirs} cpu"] / us[f"{theirs} cpu{packed}"] for us, them in pairs]
            rows.append({
                "work": work, "peer": peer,
                "ours_s": round(statistics.median(us[mine] for us, _ in pairs), 4),
                "peer_s": round(statistics.median(them[theirs] for _, them in pairs), 4),
                "ratio": round(statistics.median(them[theirs] / us[mine] for us, them in pairs), 2),
                "cpu_ratio": round(statistics.median(cpu), 2),
                "memory_ratio": round(statistics.median(us["peak_kb"] / them["peak_kb"] for us, them in pairs), 3),
                "disk_ratio": round(statistics.median(us[f"disk{packed}"] / them["disk"] for us, them in pairs), 3),
                "mean_difference": round(max(abs(us["mean"] - them["mean"]) for us, them in pairs), 5),
            })  # fmt: skip
            print(rows[-1])
    return rows


def about(options: argparse.Namespace) -> dict[str, object]:
    """What the figures depend on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": f"{processor}, {os.cpu_count()} cores, one used",
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": versions,
        "config": {
            "volume": "96×96×48" if options.tiny else "512×512×200 int16 .nii.gz",
            "grid": "merlin: 224×224×160 at 1.5×1.5×3 mm",
            "batch": BATCH,
            "repeats": options.repeats,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    for hidden in ("--side", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, Path(options.folder))))
        return
    with tempfile.TemporaryDirectory() as folder:
        for volume in make_volumes(Path(folder), tiny=True):
            if options.tiny:
                volume.with_name(volume.name.replace("small", "ct")).write_bytes(volume.read_bytes())
        if not options.tiny:
            make_volumes(Path(folder), tiny=False)
        conditions = about(options)
        rows = compare([{side: run(side, Path(folder)) for side in SIDES} for _ in range(options.repeats)])
    if options.json:
        Path(options.json).write_text(json.dumps({"rows": rows, **conditions}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
