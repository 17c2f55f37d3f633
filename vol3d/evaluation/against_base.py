"""The head-to-head with the model that this one was fine-tuned from: the first thing its page shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vol3d.evaluation.compare import compare
from vol3d.evaluation.predictions import MADE_BY, model_identity

if TYPE_CHECKING:
    from vol3d.model.inference import TrainedModel

GIVE = "name a base model's evaluation with --base DIR"


def against_base(trained: TrainedModel, out: Path, base: str | Path | None, **options: Any) -> dict[str, Any]:
    """The comparison of the evaluation in `out` with the base's, or a "note" that says why there is none.

    Args:
        base: the folder of an evaluation; None takes `evaluation` beside the model that this one was fine-tuned from,
            as its own folder tells.
        options: of `compare`.

    Raises:
        ValueError: `base` is given and cannot be compared with.
    """
    if base is not None:
        return compare(out, base, out=out, **options)
    found = _evaluated_base(trained)
    if isinstance(found, str):
        return {"note": found}
    try:
        return compare(out, found, out=out, **options)
    except ValueError as error:
        return {"note": f"{error}; or {GIVE}"}


def _evaluated_base(trained: TrainedModel) -> Path | str:
    """The folder of the base's evaluation, or why there is none."""
    from vol3d.model.pretrained import base_of

    known = None if trained.folder is None else base_of(trained.folder)
    if known is None:
        return f"No base model is known: {GIVE}, and this page opens with the differences."
    folder = known.parent / "evaluation"
    told = f"This model was fine-tuned from {known}"
    if not (folder / MADE_BY).is_file():
        return f"{told}, which has no evaluation in {folder}: write it with `vol3d evaluate`, or {GIVE}."
    made_by = json.loads((folder / MADE_BY).read_text(encoding="utf-8"))
    if (known / "model.safetensors").is_file() and made_by["model"] != model_identity(known):
        return f"{told}, and {folder} is an evaluation of other weights: evaluate the base again, or {GIVE}."
    return folder
