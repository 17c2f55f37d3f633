"""What the rows of a manifest show by themselves: reports, codes, names, class counts."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from zlib import crc32

import numpy as np

from vol3d.data.doctor_volume import Note, Probe
from vol3d.data.manifest import Manifest, Study
from vol3d.data.study import SPLITS

ALIKE = 0.9
"""Share of common word triples above which two reports are near-duplicates."""
_HASHES, _BANDS = 32, 8
_PRIOR = re.compile(
    r"""\b(?:
      compared\ (?:to|with) | in\ comparison | comparison\ (?:is\ )?(?:made\ )?(?:to|with)
    | (?:prior|previous)\ (?:ct|exam\w*|study|scan) | again\ (?:seen|noted|demonstrated) | no\ longer\ (?:seen|present)
    | interval\ (?:increase|decrease|change|development|resolution|enlargement)
    | (?:unchanged|stable|new|increased|decreased)\ (?:from|since|compared)
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_NO_PRIOR = re.compile(
    r"\bno (?:prior|previous|comparison)|(?:prior|comparison)s?:? (?:none|not available|is not)", re.IGNORECASE
)
_BLANK = re.compile(
    r"_{3,}|\*{3,}|\bX{3,}\b|\[\s*\]|\[[^\]\n]{0,40}/[^\]\n]{0,40}\]|<[a-z][a-z /_-]{2,30}>|\.{5,}", re.IGNORECASE
)
_HEADERS = re.compile(
    r"\b(?:clinical (?:history|information)|history|indication|technique|comparison|findings|impression|conclusion|"
    r"report|examination|exam|none|not available|n/?a)\b",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"(?:19|20)\d{2}[-_]?(?:0[1-9]|1[0-2])[-_]?(?:[0-2]\d|3[01])(?!\d)|[A-Z][a-z]{2,}[\^_, ]+[A-Z][a-z]{2,}"
)


def check_reports(manifest: Manifest, probes: dict[str, Probe]) -> Iterator[Note]:
    """Missing, copied and near-copied reports."""
    texts = {study.study: study.report for study in manifest}
    without = [study for study in manifest if not (texts[study.study] or "").strip()]
    message = f"has no report; {len(manifest) - len(without)} other studies have one"
    if 10 * len(without) <= len(manifest):
        for study in without:
            yield Note(study.study, "", "report", "warning", message)
    elif len(without) < len(manifest):
        yield Note("", "", "report", "info", f"{len(without)} of {len(manifest)} studies have no report")
    for study in manifest:
        if (text := texts[study.study]) and (what := _unfilled(text)):
            yield Note(study.study, "", "report_template", "warning", what)
        elif text and not study.findings and not study.impression:
            message = (
                f"its report of {len(text.split())} words has neither findings nor impression: all of it stands under "
                "headers like history or technique; start its body with 'FINDINGS:'"
            )
            yield Note(study.study, "", "report_sections", "warning", message)
    yield from _check_copies([study for study in manifest if texts[study.study]])


def check_priors(manifest: Manifest, probes: dict[str, Probe]) -> Iterator[Note]:
    """Earlier exams that a report speaks of and the row does not give, and priors that are not there to be shown."""
    for study in manifest:
        if "prior_report" in study.meta:
            continue
        text = study.report or ""
        if study.prior is None:
            if (words := _PRIOR.search(text)) and not _NO_PRIOR.search(text):
                message = f"its report speaks of an earlier exam ({words[0]!r}) but the row has no prior"
                yield Note(study.study, "", "prior", "warning", message)
        elif study.prior not in manifest:
            message = f"its prior {study.prior!r} is not among the studies that can be read: it is not used"
            yield Note(study.study, "", "prior", "warning", message)
        elif not manifest[study.prior].report:
            message = f"its prior {study.prior!r} has no report: the model is told that there is no earlier exam"
            yield Note(study.study, "", "prior", "warning", message)


def _unfilled(text: str) -> str | None:
    """Why a report is no more than a template; None: it is more."""
    blanks = _BLANK.findall(text)
    words = re.findall(r"[^\W\d_]{2,}", _HEADERS.sub(" ", _BLANK.sub(" ", text)))
    if len(words) < 2:
        return f"its report holds {len(words)} words beside headers and blanks: an empty template"
    if blanks:
        return f"its report has {len(blanks)} blanks that were never filled in ({blanks[0][:20]!r}): a template"
    return None


def _check_copies(studies: list[Study]) -> Iterator[Note]:
    same: defaultdict[str, list[Study]] = defaultdict(list)
    for study in studies:
        same[" ".join((study.report or "").lower().split())].append(study)
    for text, group in same.items():
        if len({study.patient for study in group}) > 1:
            kind = "a template, or a copy" if len(group) > 2 else "a copy"
            yield _copies(
                group, "report_copy", f"{len(group)} studies have this same report of {len(text.split())} words: {kind}"
            )
    distinct = {text: group[0] for text, group in same.items()}
    for group in _near_copies(distinct):
        if len({study.patient for study in group}) > 1:
            yield _copies(
                group, "report_near_copy", f"{len(group)} reports share over {100 * ALIKE:.0f} % of their word triples"
            )


def _copies(group: list[Study], check: str, what: str) -> Note:
    splits = sorted({study.split for study in group if study.split}, key=SPLITS.index)
    names = ", ".join(study.study for study in group[:5]) + (" …" if len(group) > 5 else "")
    across = f", across {' and '.join(splits)}" if len(splits) > 1 else ""
    return Note(group[0].study, "", check, "warning", f"{what}{across} ({names})")


def _near_copies(distinct: dict[str, Study]) -> list[list[Study]]:
    """Groups of reports with much the same word triples (MinHash, Broder 1997; each pair is then verified)."""
    triples = {text: _triples(text) for text in distinct}
    rng = np.random.default_rng(0)
    factors = rng.integers(1, 2**31 - 1, (2, _HASHES), dtype=np.uint64)
    buckets: dict[tuple[int, bytes], str] = {}
    leader = {text: text for text in distinct}
    for text, found in triples.items():
        if len(found) < 10:
            continue
        hashes = np.fromiter(found, np.uint64, len(found))[:, None] * factors[0] + factors[1]
        least = (hashes % np.uint64(4294967291)).min(axis=0).reshape(_BANDS, -1)
        for band, row in enumerate(least):
            other = buckets.setdefault((band, row.tobytes()), text)
            shared = len(found & triples[other])
            if other != text and shared >= ALIKE * (len(found) + len(triples[other]) - shared):
                leader[text] = leader[other]
                break
    groups: defaultdict[str, list[Study]] = defaultdict(list)
    for text, study in distinct.items():
        groups[leader[text]].append(study)
    return [group for group in groups.values() if len(group) > 1]


def _triples(text: str) -> set[int]:
    words = re.findall(r"\w+", text)
    return {crc32(" ".join(words[i : i + 3]).encode()) for i in range(len(words) - 2)}


def check_sides(manifest: Manifest, probes: dict[str, Probe]) -> Iterator[Note]:
    """A finding that is masked on one side and reported on the other."""
    from vol3d.text.parser import finding_keys

    for study in manifest:
        present = set(probes[study.study].present) | {box["label"] for box in study.boxes}
        sided = [name for name in present if name.startswith(("left ", "right "))]
        if not sided or not study.report:
            continue
        keys = finding_keys(study.report)
        for name in sorted(sided):
            side, _, finding = name.partition(" ")
            other = f"{'right' if side == 'left' else 'left'} {finding}"
            if other in keys and name not in keys and other not in present:
                message = f"mask or box says {name!r}, the report says {other!r}: one of them is wrong"
                yield Note(study.study, "", "side", "error", message)


def check_codes(manifest: Manifest, probes: dict[str, Probe]) -> Iterator[Note]:
    """Codes that their code system does not have, and codes of another system."""
    for study in manifest:
        if study.code_system is not None:
            for severity, message in _check_codes([*study.codes, *study.codes_absent], study.code_system):
                yield Note(study.study, "", "codes", severity, message)


def _check_codes(codes: list[str], system: str) -> Iterator[tuple[str, str]]:
    from vol3d.text.code_sets import RELEASES, missing_codes
    from vol3d.text.codes import unknown_codes

    if malformed := unknown_codes(codes, system):
        yield "error", f"{malformed[:5]} cannot be {system}{_other_system(malformed, system)}"
    if undotted := [code for code in codes if code not in malformed and _lacks_dot(code, system)]:
        yield "error", f"{undotted[:5]} are {system} without their dot: its codes take a dot after the category"
    if missing := missing_codes(codes, system):
        other = _other_system(missing, system)
        why = other or ": a typing error, or a code that was taken back earlier"
        yield "error" if other else "warning", f"{missing[:5]} are not in {RELEASES[system]}{why}"


def _lacks_dot(code: str, system: str) -> bool:
    return system != "phecode" and "." not in code and len(code) > (4 if system == "icd9cm" and code[0] in "Ee" else 3)


def _other_system(codes: list[str], system: str) -> str:
    from vol3d.text.code_sets import systems_of

    others = [name for name in systems_of(codes) if name not in (system, "phecode")]
    return f": they look like {others[0]}" if others else ""


def check_paths(manifest: Manifest, probes: dict[str, Probe]) -> Iterator[Note]:
    """File names that may tell who the patient is."""
    for study in manifest:
        path = study.image.relative_to(manifest.root) if study.image.is_relative_to(manifest.root) else study.image
        if any(_NAMED.search(part) for part in path.parts):
            message = "its path seems to hold a date or a person's name: rename it before the dataset is shared"
            yield Note(study.study, study.image.name, "privacy", "warning", message)


def check_counts(manifest: Manifest, probes: dict[str, Probe]) -> Iterator[Note]:
    """How often each class occurs in each split, and classes that a split lacks."""
    if not len(manifest):
        yield Note("", "", "manifest", "error", "has no study that can be used: write one a row")
        return
    splits = [name for name in SPLITS if len(manifest.split(name))]
    if not splits:
        yield Note("", "", "splits", "warning", "no study has a split: give each row train, val or test")
        return
    yield Note("", "", "splits", "info", ", ".join(f"{name} {len(manifest.split(name))} studies" for name in splits))
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for study in manifest:
        for name in _classes(study, probes[study.study]):
            counts[name][study.split or "no split"] += 1
    for name, count in sorted(counts.items()):
        missing = [split for split in splits if not count[split]]
        text = ", ".join(f"{split} {count[split]}" for split in splits)
        if missing and sum(count.values()) >= 5:
            yield Note(
                "", "", "classes", "warning", f"{name}: {text}; {' and '.join(missing)} cannot learn or measure it"
            )
        else:
            yield Note("", "", "classes", "info", f"{name}: {text}")


def _classes(study: Study, found: Probe) -> Iterable[str]:
    return {*found.present, *study.codes, *(name for name, known in study.labels_known.items() if known == 1)}
