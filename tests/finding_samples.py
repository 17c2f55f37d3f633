"""Random finding sets for tests of text: every type, side, site, size, count and severity."""

import random
from collections.abc import Collection
from dataclasses import replace

from vol3d.text.ontology import FINDINGS, SIDES, Finding

_SIDE_OF = {"middle lobe": "right", "lingula": "left"}


def random_findings(rng: random.Random, chance: float, names: Collection[str] = tuple(FINDINGS)) -> list[Finding]:
    """Draw a study's findings, each key with the given chance; half of all pairs alike, so that they may be merged."""
    found: list[Finding] = []
    for name in names:
        kind = FINDINGS[name]
        pair = []
        for side in SIDES if kind.sided else (None,):
            if rng.random() > chance:
                continue
            sites = [None, *(site for site in kind.sites if side is None or _SIDE_OF.get(site, side) == side)]
            measured = kind.measured and rng.random() < 0.9
            pair.append(
                Finding(
                    name,
                    side,
                    site=rng.choice(sites),
                    size_mm=float(rng.randint(2, 99)) if measured else None,
                    count=rng.choice([1, 1, 2, 3, 5]) if kind.countable else 1,
                    severity=rng.choice([None, *kind.severities]),
                )
            )
        if len(pair) == 2 and rng.random() < 0.5:
            left = replace(pair[0], site=None, count=1)
            pair = [left, replace(left, side="right")]
        found.extend(pair)
    rng.shuffle(found)
    return found
