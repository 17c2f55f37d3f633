"""How well hidden voxels are filled in."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from vol3d.evaluation.intervals import clustered_bootstrap

DEFINITIONS = {"error": "mean absolute error of the hidden voxels, in units of the window (0 to 1), mean over studies"}


def score_reconstruction(
    errors: Float[ndarray, " studies"],
    constant_errors: Float[ndarray, " studies"],
    patients: Sequence[Hashable],
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score "error" with its 95 % patient-clustered interval, and "baselines": {"constant": …}.

    Args:
        errors: of each study. constant_errors: when the study's own mean value is said everywhere.
    """
    estimate = clustered_bootstrap(
        lambda weights: weights @ errors / weights.sum(1), patients, replicates=replicates, seed=seed
    )[0]
    baselines = {"constant": {"error": float(np.mean(constant_errors))}}
    return {"error": estimate, "baselines": baselines, "definitions": DEFINITIONS}
