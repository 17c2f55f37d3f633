"""Preprocessing of published models, as their own code does it (sources beside each).

All of them see RAS volumes here, or LPS (the order of DICOM pixels) where the peer never turned its files: a
network is fed what it was trained on, and the affine says which way is which. Axis order is always x, y, z;
`encoders/convert.py` permutes a peer's weights instead of the volume.
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # StanfordMIMI/Merlin, merlin/data/monai_transforms.py
    "merlin": {"spacing": (1.5, 1.5, 3.0), "shape": (224, 224, 160), "window": (-1000, 1000)},
    # BAAI-DCAI/M3D, data preparation: min-max, CropForeground, resize; no spacing at all
    "m3d": {"shape": (256, 256, 32), "window": "minmax", "crop": "foreground", "orientation": "LPS"},
    # ibrahimethemhamamci/CT-CLIP, scripts/data.py
    "ct-clip": {"spacing": (0.75, 0.75, 1.5), "shape": (480, 480, 240), "window": (-1000, 1000),
                "out_range": (-1, 1), "orientation": "LPS"},
    # alibaba-damo-academy/fvlm
    "fvlm": {"spacing": (1.0, 1.0, 3.0), "shape": (352, 256, 112), "window": (-1150, 350), "orientation": "LPS"},
    # cclaess/SPECTRE
    "spectre": {"spacing": (0.75, 0.75, 1.5), "shape": (384, 384, 256), "window": (-1000, 1000)},
    # Microsoft COLIPRI
    "colipri": {"spacing": (2.0, 2.0, 2.0), "shape": (192, 192, 192), "window": (-1000, 1000), "out_range": (-1, 1)},
    # BAAI-DCAI/SegVol: z-score of the foreground after clipping to its 0.05 and 99.95 percentiles
    "segvol": {"shape": (256, 256, 32), "window": "zscore", "crop": "foreground", "orientation": "LPS"},
    # chaoyi-wu/RadFM: min-max, three equal channels (made by the encoder), up to 64 slices
    "radfm": {"shape": (256, 256, 64), "window": "minmax", "orientation": "LPS"},
    # vol3d's own: lung, soft tissue and bone as channels
    "three-windows": {"spacing": (2.5, 2.5, 4.0), "shape": (160, 160, 128),
                      "window": ((-1000, 200), (-160, 240), (-200, 1000))},
}  # fmt: skip
