"""Synthetic CT with known truth: a procedural torso, its findings, masks, report and questions (numpy only)."""

from vol3d.phantom.files import write
from vol3d.phantom.findings import PAINTERS
from vol3d.phantom.study import PhantomStudy, make
from vol3d.text.ontology import FINDINGS as _TYPES

FINDINGS: tuple[str, ...] = tuple(name for name in _TYPES if name in PAINTERS)
"""Names of the findings a phantom may have, in report order."""

__all__ = ["FINDINGS", "PhantomStudy", "make", "write"]
