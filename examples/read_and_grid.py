"""Read a CT, put it on a network's grid, and bring what was found there back onto the file's own grid.

    python examples/read_and_grid.py [CT]

Without a CT a phantom is made.
"""

import sys
import tempfile
from pathlib import Path

import vol3d

folder = Path(tempfile.mkdtemp())
path = sys.argv[1] if len(sys.argv) > 1 else None
if path is None:
    manifest = vol3d.phantom.write(folder, studies=1, shape=(64, 64, 48))
    path = vol3d.Manifest.read(manifest)[0].image

volume = vol3d.read(path)  # NIfTI, NRRD, MHA or a DICOM folder: (1, x, y, z), RAS, HU
geometry = vol3d.Geometry.of(volume)
spacing = " × ".join(f"{length:.2f}" for length in geometry.spacing)
print(f"read     {tuple(volume.shape)}, {spacing} mm, {geometry.axcodes}, {volume.min():.0f} to {volume.max():.0f} HU")

grid = vol3d.Grid(spacing=(5, 5, 8), shape=(80, 80, 56), window=[(-1000, 200), (-160, 240)])
x = grid(volume)
print(f"on grid  {tuple(x.shape)}, one channel a window, {x.min():.2f} to {x.max():.2f}")

bone = grid.resample(volume) > 300  # any array on the grid: a mask, a heatmap, a segmentation
back = grid.inverse(bone.as_tensor().byte()[0], like=volume)
print(f"back     {tuple(back.shape)}, {int(back.sum())} voxels over 300 HU")

vol3d.write(back, folder / "bone.nii.gz")
again = vol3d.read_mask(folder / "bone.nii.gz")
assert vol3d.Geometry.of(again).is_close(geometry), "the mask lies where the CT lies"
