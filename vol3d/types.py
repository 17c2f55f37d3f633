"""Shape-typed names for the arrays that cross room borders (jaxtyping; checked in tests, free in production).

Axes after reading are always (channel, x, y, z): index grows to the patient's Right, Anterior and
Superior (RAS). Nothing in vol3d permutes them.
"""

from jaxtyping import Bool, Float, Float64, Int, Shaped
from numpy import ndarray
from torch import Tensor

Affine = Float64[ndarray, "4 4"]
"""Voxel index → RAS millimetres, one volume."""
Affines = Float64[Tensor, "batch 4 4"]
"""Voxel (or token) index → RAS millimetres, one a study."""
Volume = Shaped[Tensor, "channels x y z"]
Volumes = Float[Tensor, "batch channels x y z"]
Masks = Int[Tensor, "batch x y z"]
Tokens = Float[Tensor, "batch tokens embed_dim"]
Pooled = Float[Tensor, "batch embed_dim"]
TokenIds = Int[Tensor, "batch length"]
TokenMask = Bool[Tensor, "batch length"]
Logits = Float[Tensor, "batch length vocabulary"]

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]
