"""One real CT learnt by heart: ten organs by their names, on the scan's own grid, in whatever orientation it is stored.

    python benchmarks/real_segmentation.py FOLDER --out real --json real.json --picture real.png

FOLDER holds ct.nii.gz, seg.nii.gz and labels.json ({"labels": {"1": {"name": "spleen"}, …}}), as the example CT in
TotalSegmentator's tests has them. Training sees the scan itself: this measures whether everything from file to mask and
back keeps its place, not whether a model generalises. Then the same patient, written anew in LPS and ASL, is segmented
by `vol3d segment`. Asked for: mean Dice 0.90, and 0.99 between orientations. `blind` is the same question about the
scan's voxels in random order: what was learnt by place alone. About twelve minutes of one CPU core; an OUT that holds
a model is judged again without training.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import lightning
import nibabel as nib
import numpy as np
import torch

import vol3d
from vol3d import cli
from vol3d.evaluation.slices import mask_slices, slices
from vol3d.model.text_prompt import wordings
from vol3d.training.callbacks import SaveModel
from vol3d.training.stages import Stage

ORGANS = [
    *("spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "pancreas", "aorta"),
    *("urinary_bladder", "colon"),
]
TURNED = ("LPS", "ASL")
PATCH = 16
COLOURS = [
    *((230, 60, 60), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48)),
    *((145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212)),
]
"""Of the organs, in their order."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep manifest, model, scans and masks here")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="the masks over the scan")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--spacing", type=float, default=3.0, help="mm of the grid (default: 3)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "model").is_dir():
            _train(arguments, out)
        rows = _judge(arguments.folder, out)
        report = {
            "rows": rows,
            "mean_dice": round(float(np.mean([row["dice"] for row in rows])), 4),
            "least_dice": min(row["dice"] for row in rows),
            "between_orientations": min(row["between_orientations"] for row in rows),
            "blind_dice": round(float(np.mean([row["blind_dice"] for row in rows])), 4),
            **json.loads((out / "training.json").read_text()),
            "versions": {"vol3d": vol3d.__version__, "torch": torch.__version__},
        }
        if arguments.picture:
            _draw(arguments.folder, out, arguments.picture)
    sys.stdout.write(json.dumps({key: value for key, value in report.items() if key != "rows"}) + "\n")
    for row in rows:
        said = f"{row['organ']:18} Dice {row['dice']:.3f}  blind {row['blind_dice']:.3f}  {row['volume_ml']:8.1f} ml"
        sys.stdout.write(f"{said}  ({row['true_ml']:.1f})\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _train(arguments: argparse.Namespace, out: Path) -> None:
    source, start = arguments.folder.resolve(), time.process_time()
    row = {
        "study": "real",
        "patient": "real",
        "image": str(source / "ct.nii.gz"),
        "split": "train",
        "mask": str(source / "seg.nii.gz"),
        "mask_labels": _numbers(source),
    }
    (out / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    windows = [(-1000, 200), (-160, 240), (-200, 1000)]
    shape = _around_the_organs(source, arguments.spacing)
    grid = vol3d.Grid(spacing=[arguments.spacing] * 3, shape=shape, window=windows, name="real")
    torch.manual_seed(0)
    module = vol3d.VolumeModule(
        encoder=vol3d.encoders.create(
            "vit3d-tiny", in_channels=3, patch_size=(PATCH,) * 3, embed_dim=128, depth=2, num_heads=4, stem="conv"
        ),
        tasks={
            "masks": partial(
                vol3d.tasks.PromptSegmentation, names=ORGANS, prompts=5, interactive=0.0, dim=96, pixel_dim=8
            )
        },
        stages={"learn": Stage(learning_rate=3e-3, warmup=10)},
    )
    lightning.Trainer(
        max_steps=arguments.steps,
        accelerator="cpu",
        logger=False,
        gradient_clip_val=1.0,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[SaveModel(out), Progress()],
    ).fit(module, vol3d.VolumeData(out / "manifest.jsonl", grid, batch_size=1, in_memory=True))
    seconds = round(time.process_time() - start)
    told = {"steps": arguments.steps, "grid": {"spacing_mm": arguments.spacing, "shape": shape}, "train_cpu_s": seconds}
    (out / "training.json").write_text(json.dumps(told) + "\n")


class Progress(lightning.Callback):
    """A line every twenty steps."""

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        if trainer.global_step % 20 == 0:
            dice = float(trainer.callback_metrics["train/masks_dice"])
            sys.stderr.write(f"step {trainer.global_step}: Dice {dice:.3f}, {time.process_time():.0f} s of CPU\n")


def _numbers(folder: Path) -> dict[str, int]:
    labels = json.loads((folder / "labels.json").read_text())["labels"]
    return {label["name"]: int(number) for number, label in labels.items()}


def _around_the_organs(folder: Path, spacing: float) -> list[int]:
    """The smallest grid in the middle of the scan that holds every organ: voxels of bed and air cost time."""
    mask, numbers = nib.load(folder / "seg.nii.gz"), _numbers(folder)
    where = np.where(np.isin(np.asarray(mask.dataobj), [numbers[organ] for organ in ORGANS]))
    shape = []
    for places, size, zoom in zip(where, mask.shape, mask.header.get_zooms(), strict=True):
        middle = (size - 1) / 2
        reach = 2 * max(middle - places.min(), places.max() - middle) + 1
        shape.append(int(PATCH * np.ceil(reach * zoom / spacing / PATCH)))
    return shape


def _judge(folder: Path, out: Path) -> list[dict]:
    """Each organ by `vol3d segment`, in three orientations of the file, against the file's own labels."""
    scan = nib.load(folder / "ct.nii.gz")
    own, numbers = np.asarray(nib.load(folder / "seg.nii.gz").dataobj), _numbers(folder)
    files = {"own": folder / "ct.nii.gz", **{codes: out / f"ct_{codes}.nii.gz" for codes in (*TURNED, "blind")}}
    for codes in TURNED:
        nib.save(_turned(scan, codes), files[codes])
    dealt = np.random.default_rng(0).permutation(np.asarray(scan.dataobj).ravel()).reshape(scan.shape)
    nib.save(nib.Nifti1Image(dealt, scan.affine), files["blind"])
    rows, voxel_ml = [], float(abs(np.linalg.det(scan.affine[:3, :3]))) / 1000
    for organ in ORGANS:
        found, truth = {}, own == numbers[organ]
        for name, path in files.items():
            found[name], told = _segmented(out, path, wordings(organ)[0], out / f"{organ}_{name}.nii.gz")
            found[name] = np.asarray(_turned(found[name], nib.aff2axcodes(scan.affine)).dataobj) > 0
            assert abs(told["volume_ml"] - found[name].sum() * voxel_ml) < 0.01, "the volume told is the mask's"
        rows.append(
            {
                "organ": organ,
                "dice": round(_dice(found["own"], truth), 4),
                "blind_dice": round(_dice(found["blind"], truth), 4),
                "between_orientations": min(_dice(found["own"], found[codes]) for codes in TURNED),
                "volume_ml": round(float(found["own"].sum()) * voxel_ml, 2),
                "true_ml": round(float(truth.sum()) * voxel_ml, 2),
            }
        )
    return rows


def _segmented(out: Path, scan: Path, phrase: str, mask: Path) -> tuple[nib.Nifti1Image, dict]:
    """What `vol3d segment` writes and says; the mask lies on the scan's own grid."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = cli.main(["segment", str(out / "model"), str(scan), phrase, "-o", str(mask), "--json"])
    assert code == 0, f"vol3d segment ended with {code}"
    written, image = nib.load(mask), nib.load(scan)
    assert written.shape == image.shape, f"mask {written.shape}, scan {image.shape}"
    assert np.allclose(written.affine, image.affine, atol=1e-3), f"mask {written.affine}, scan {image.affine}"
    return written, json.loads(said.getvalue())


def _turned(image: nib.Nifti1Image, codes: str | tuple[str, ...]) -> nib.Nifti1Image:
    """The same image with axes that run towards `codes`."""
    now, wanted = nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(codes))
    return image.as_reoriented(nib.orientations.ornt_transform(now, wanted))


def _dice(one: np.ndarray, two: np.ndarray) -> float:
    total = int(one.sum()) + int(two.sum())
    return 2 * int((one & two).sum()) / total if total else 1.0


def _draw(folder: Path, out: Path, path: Path) -> None:
    """Through the middle of the liver, the left kidney and the bladder: the masks in colour over the scan, and beside
    each the true ones."""
    from PIL import Image

    scan = nib.load(folder / "ct.nii.gz")
    hu, own = np.asarray(scan.dataobj), np.asarray(nib.load(folder / "seg.nii.gz").dataobj)
    spacing, numbers = tuple(float(zoom) for zoom in scan.header.get_zooms()), _numbers(folder)
    rows = []
    for middle in ("liver", "kidney_left", "urinary_bladder"):
        at = own == numbers[middle]
        pictures = [[np.repeat(plane[..., None], 3, axis=2) for plane in slices(hu, spacing, at=at)] for _ in "mt"]
        for number, organ in enumerate(ORGANS):
            found = np.asarray(nib.load(out / f"{organ}_own.nii.gz").dataobj) > 0
            for planes, mask in zip(pictures, (found, own == numbers[organ]), strict=True):
                for plane, inside in zip(planes, mask_slices(mask, spacing, at=at), strict=True):
                    plane[inside] = (plane[inside] * 0.5 + np.array(COLOURS[number]) * 0.5).astype(np.uint8)
        planes = [plane for pair in zip(*pictures, strict=True) for plane in pair]
        height = max(plane.shape[0] for plane in planes)
        rows.append(np.concatenate([np.pad(p, ((0, height - len(p)), (2, 2), (0, 0))) for p in planes], axis=1))
    picture = Image.fromarray(np.concatenate(rows))
    picture.resize((2 * picture.width, 2 * picture.height)).save(path)


if __name__ == "__main__":
    main()
