"""From a file to Merlin's grid, cold and warm, against MONAI's PersistentDataset and Merlin's own pipeline, in one run.

    python benchmarks/data.py --json data.json      # 512 × 512 × 200, a few minutes on a CPU
    python benchmarks/data.py --tiny                # seconds, to see that it works

Cold: the gzipped NIfTI → the tensor a network gets, the cache entry written on the way, as all three do. Warm: the
cache entry → that tensor. Every measurement is a process of its own, the sides in turn. `ratio` is the peer's time over
ours; `memory_ratio` (peak above the imports, cold) and `disk_ratio` (cache entry) are ours over the peer's.
Merlin's side runs when merlin-vlm is installed (pip install --no-deps merlin-vlm).
"""

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache as cache_once
from pathlib import Path
from types import ModuleType

import torch

SIDES = ("vol3d", "monai", "merlin")
WARM_VISITS = 10


def make_volume(path: Path, *, tiny: bool) -> None:
    """A phantom with scanner noise, int16 HU."""
    import nibabel

    from vol3d import phantom

    study = phantom.make(0, shape=(96, 96, 48) if tiny else (512, 512, 200))
    nibabel.save(nibabel.Nifti1Image(study.hu, study.affine), path)


def ours(image: Path, cache: Path) -> Callable[[], torch.Tensor]:
    from vol3d import Grid
    from vol3d.data.cache import VolumeCache
    from vol3d.data.study import Study

    grid = Grid.preset("merlin")
    entries = VolumeCache(cache, grid)
    study = Study(study="one", image=image)
    return lambda: grid.window_hu(entries.get(study).hu)


def monai(image: Path, cache: Path) -> Callable[[], torch.Tensor]:
    """MONAI's own transforms and cache, with the numbers Merlin publishes."""
    from monai import transforms
    from monai.data import PersistentDataset

    steps = [
        transforms.LoadImaged("image", ensure_channel_first=True),
        transforms.Orientationd("image", axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
        transforms.Spacingd("image", pixdim=(1.5, 1.5, 3.0), mode="bilinear"),
        transforms.ScaleIntensityRanged("image", -1000, 1000, 0.0, 1.0, clip=True),
        transforms.ResizeWithPadOrCropd("image", (224, 224, 160)),
    ]
    data = PersistentDataset([{"image": str(image)}], transforms.Compose(steps), cache_dir=cache)
    return lambda: data[0]["image"]


def merlin(image: Path, cache: Path) -> Callable[[], torch.Tensor] | None:
    """Merlin's data set from its package."""
    package = merlin_package()
    if package is None:
        return None
    peer, transform = package
    data = peer.CTPersistentDataset([{"image": str(image)}], transform, cache_dir=cache)
    return lambda: data[0]["image"]


@cache_once
def merlin_package() -> tuple[ModuleType, object] | None:
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
    return sys.modules["merlin.data.dataloaders"], sys.modules["merlin.data.monai_transforms"].ImageTransforms


def measure(side: str, image: Path, cache: Path) -> dict[str, float] | None:
    """One process: seconds of the first visit (cold when the cache is empty) and of the later ones (warm)."""
    torch.set_num_threads(1)
    side_of = {"vol3d": ours, "monai": monai, "merlin": merlin}[side]
    with tempfile.TemporaryDirectory() as elsewhere:  # a small volume first, so that no import is timed
        rehearse = side_of(image.with_name("small.nii.gz"), Path(elsewhere))
        if rehearse is None:
            return None
        rehearse()
    get = side_of(image, cache)
    # What is held now, not the highest so far: the rehearsal's own peak may only make the figure larger.
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
    start = time.perf_counter()
    mean = read_once(get())
    cold = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    warm = []
    for _ in range(WARM_VISITS):
        start = time.perf_counter()
        read_once(get())
        warm.append(time.perf_counter() - start)
    disk = sum(path.stat().st_size for path in cache.rglob("*") if path.suffix in (".pt", ".safetensors"))
    return {"cold": cold, "warm": statistics.median(warm), "peak_kb": peak, "disk": disk, "mean": mean}


def read_once(tensor: torch.Tensor) -> float:
    """Every voxel is looked at, because a memory-mapped entry costs nothing until it is."""
    return float(tensor.as_subclass(torch.Tensor).mean())


def run(side: str, image: Path) -> dict[str, float] | None:
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--side", side, "--image", str(image), "--cache", cache]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(said.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    for hidden in ("--side", "--image", "--cache"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, Path(options.image), Path(options.cache))))
        return
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "ct.nii.gz"
        make_volume(image, tiny=options.tiny)
        make_volume(image.with_name("small.nii.gz"), tiny=True)
        seen = [{side: run(side, image) for side in SIDES} for _ in range(options.repeats)]
    rows = []
    for peer in SIDES[1:]:
        pairs = [(one["vol3d"], one[peer]) for one in seen if one[peer] is not None]
        for work in ("cold", "warm") if pairs else ():
            row = {"work": work, "peer": peer}
            row["ours_s"] = round(statistics.median(us[work] for us, _ in pairs), 4)
            row["peer_s"] = round(statistics.median(them[work] for _, them in pairs), 4)
            row["ratio"] = round(statistics.median(them[work] / us[work] for us, them in pairs), 2)
            row["memory_ratio"] = round(statistics.median(us["peak_kb"] / them["peak_kb"] for us, them in pairs), 3)
            row["disk_ratio"] = round(statistics.median(us["disk"] / them["disk"] for us, them in pairs), 3)
            row["mean_difference"] = round(max(abs(us["mean"] - them["mean"]) for us, them in pairs), 5)
            rows.append(row)
            print(row)
    if options.json:
        Path(options.json).write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
