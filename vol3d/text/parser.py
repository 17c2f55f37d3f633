"""The rule-based parser that every report score rests on: text → the findings it says are there.

It reads section by section and sentence by sentence; `shorthand` and `ellipsis` write out what is shortened or left
out, `spelling` mends slips, `mentions` finds what is named, `polarity` whether it is said to be there, `places` on
which side, `attributes` the rest. Four decisions, made once and for every score:

- **Doubt counts as present.** "Possible left pneumothorax" is a finding a reader acts on. `parse_mentions` tells
  "possible" apart for those who want to.
- **The past does not count.** "History of pneumothorax", "previously seen effusion", and the sections before the
  findings (history, technique, comparison) give nothing, unless the sentence says the finding is still there.
- **Both sides are two findings.** "Bilateral pleural effusions" gives a left and a right one.
- **A sided finding without a side keeps side=None**, and its key is the bare name ("pleural effusion"), which equals
  neither side's key: not saying the side is not the same as getting it right. If the same report names a side of
  that finding anywhere else, the sideless mention is taken as the same finding and dropped.

Text is never refused: whatever a model writes, the parser returns what it can read and raises nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from vol3d.text.attributes import count, make_finding, severity, sites, sizes
from vol3d.text.ellipsis import continued, is_item, listed, named_again
from vol3d.text.mentions import SECTION_ORGAN, find_spans, header_organs
from vol3d.text.ontology import FINDINGS, Finding, Side, in_report_order
from vol3d.text.places import bind_places, find_places
from vol3d.text.polarity import Status, statuses
from vol3d.text.sections import header_organ, header_section, report_parts
from vol3d.text.shorthand import written_out
from vol3d.text.spelling import respelt


@dataclass(frozen=True, slots=True)
class Mention:
    """One finding as one sentence names it.

    Args:
        finding: What is named.
        status: "present", "possible", "absent" or "historical".
        sentence: The sentence as it was read: lower case, slips mended, shorthand and what it leaves out written out.
        counted: The finding's count is said; False for a bare plural and "multiple", which are two or more.
    """

    finding: Finding
    status: Status
    sentence: str
    counted: bool = True


def parse_findings(text: str) -> list[Finding]:
    """Read the findings that a report says are there, in report order, each key once.

    Args:
        text: A report, or any part of one, with or without headers.

    Example:
        >>> parse_findings("No pneumothorax. Small left effusion.")
        [Finding(name='pleural effusion', side='left', site=None, size_mm=None, count=1, severity='small')]
    """
    present = [m.finding for m in parse_mentions(text) if m.status in ("present", "possible")]
    return _deduplicate(present)


def finding_keys(text: str) -> set[str]:
    """Read the keys of the findings a report says are there: {"left pleural effusion", "ascites"}."""
    return {finding.key for finding in parse_findings(text)}


def finding_labels(text: str) -> dict[str, int]:
    """Read what a report says of each finding: 1 there, 0 said not to be; keys not mentioned are left out.

    An unsided denial ("no pleural effusion") denies both sides; "a left effusion" says nothing of the right.
    The order is the report's, what is denied first.
    """
    labels: dict[str, int] = {}
    for mention in parse_mentions(text):
        if mention.status == "absent":
            side_known = mention.finding.side is not None
            for key in (mention.finding.key,) if side_known else mention.finding.type.keys:
                labels.setdefault(key, 0)
    return {**labels, **{finding.key: 1 for finding in parse_findings(text)}}


def parse_mentions(text: str) -> list[Mention]:
    """Read every mention of every finding, with whether it is said to be there."""
    out: list[Mention] = []
    before: tuple[Mention, ...] = ()
    above: tuple[str, ...] = ()
    for sentence, organs, sides in _sentences(text):
        earlier = before[-1].finding if before and organs == above else None
        sentence = continued(sentence, earlier, sides)
        mentions = _read(sentence, organs, sides)
        lent = mentions and earlier and not sides and _GOES_WITH.match(sentence)
        if lent and mentions[0].finding.type.organ == before[-1].finding.type.organ:
            mentions = _read(sentence, organs, _sides_of(before))
        before, above = (mentions, organs) if sentence else (before, above)
        out.extend(mentions)
    return out


def _sides_of(mentions: tuple[Mention, ...]) -> tuple[Side, ...]:
    """The sides of the last finding of a sentence."""
    last = mentions[-1].finding.name
    sides = [m.finding.side for m in mentions if m.finding.name == last and m.status in ("present", "possible")]
    return tuple(side for side in sides if side is not None)


# Sentences
_LIST_MARK = re.compile(r"(?m)^[ \t]*(?:\(?\d{1,2}[.)]|[-*•·–])[ \t]+|(?<=[.;:\n]) \d{1,2}[.)] (?=[A-Za-z])")
_WRAPPED = re.compile(r"(?<=[a-z0-9,])[ \t]*\n[ \t]*(?=[a-z])(?![a-z ]{2,30}:)")
_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\bapprox)(?<!\bcf)(?<!\bdr)\.(?=\s|$)|[;!?\n]+"
    r"|,(?= (?:left|right)(?: kidney| lung)? ?:)"
)
_SPACED_DECIMAL = re.compile(r"(?<= \d) \. ?(?=\d+ ?[cm]m\b)")
_HEADER = re.compile(r"([a-z][a-z ,/&()-]{1,60}?)\s*:\s*")
_QUESTION = re.compile(r" ?\?[ \t]+(?=(?:yes|no|none|absent|present|negative|positive)\s*(?:[.,;\n]|$))")
_LEAD = re.compile(
    r"(?P<no>.*\b(?:not (?:\w+ly )?(?:seen|identified|present|found|detected)|ruled out|excluded|absent|negatives?"
    r"|resolved|denied))|(?P<past>(?:prior|previous)(?: \w+)? (?:exam\w*|ct|study|scan|imaging|report)(?: \w+)?)"
)
"""A header that denies, or puts into the past, what it is followed by: "Ruled out: pneumothorax, effusion"."""
_SAYING = re.compile(r"\b(?:no|not|without|free|negative|is|are|was|were|has|have|shows?|compared|for)\b")
_STATE = re.compile(
    r"(?:(?:measur\w+ )?\d[\d.x ]*[cm]m,? )?(?:not |no longer )?(?:\w+ly |borderline )?"
    r"(?:enlarged|fatty(?: infiltrat(?:ed|ion))?|aneurysmal|collapsed|dilated)"
    r"(?=\s*(?:$|[,(]|(?:measuring|at|to|with|in|and|but|without)\b))"
)
"""What is said of the organ in a header itself: "Spleen: Enlarged, 15 cm"."""
_GOES_WITH = re.compile(
    r"(?:there is )?(?:associated|adjacent|overlying|underlying|accompanying|compressive) (?!with|to|the)"
)
_SPACE = re.compile(r"\s+")
_HYPHENS = str.maketrans({"‐": "-", "‑": "-", "‒": "-", "–": "-", "—": ",", "×": "x", "\u00a0": " ", "’": "'"})
_MAX_SENTENCE = 600


def _sentences(text: str) -> Iterator[tuple[str, tuple[str, ...], tuple[Side, ...]]]:
    """Yield (sentence, organs of its header, sides of its header) of the parts that describe this study."""
    for part, body in report_parts(text.translate(_HYPHENS)):
        if part != "other":
            yield from _part_sentences(body)


def _part_sentences(text: str) -> Iterator[tuple[str, tuple[str, ...], tuple[Side, ...]]]:
    text = written_out(text.replace("**", "").replace("#", " "))
    text = respelt(_WRAPPED.sub(" ", _LIST_MARK.sub("\n", text)).lower())
    text = _QUESTION.sub(": ", _SPACED_DECIMAL.sub(".", text))
    organs: tuple[str, ...] = ()
    sides: tuple[Side, ...] = ()
    finding = ""
    for raw in _END.split(text):
        sentence = listed(_SPACE.sub(" ", raw).strip(), finding)
        while match := _HEADER.match(sentence):
            kind, under, sided = _header(match[1].strip(), organs)
            rest = sentence[match.end() :]
            finding = match[1] if kind == "finding" and (not rest or is_item(rest)) else ""
            organs, sides = (under, sided) if kind == "organ" else (organs, sides)
            if kind == "finding":
                sentence = f"{match[1]} is {rest}" if rest else ""
            elif kind == "organ" and _STATE.match(rest):
                sentence = f"{match[1]} is {rest}"
            elif "coronar" in match[1]:
                sentence = f"{match[1]} {rest}"
            elif kind == "text" and (lead := _LEAD.fullmatch(match[1].strip())):
                sentence = f"{'no' if lead['no'] else 'history of'} {rest}"
            elif kind == "organ":
                sentence = rest
                continue
            break
        for start in range(0, len(sentence), _MAX_SENTENCE):
            yield sentence[start : start + _MAX_SENTENCE], organs, sides


@lru_cache(maxsize=4096)
def _header(header: str, organs: tuple[str, ...]) -> tuple[str, tuple[str, ...], tuple[Side, ...]]:
    """Judge what stands before a colon: an organ or a part of one ("left kidney", "upper abdomen"), a finding, or text.

    A side alone ("Right:") keeps the organs of the header above it; a site of no side ("Left lobe:") is text, to be
    read with what it is the site of.
    """
    if header_section(header) is not None:
        return "organ", (), ()
    if find_spans(header):
        return "finding", (), ()
    if _SAYING.search(header):
        return "text", (), ()
    places = find_places(header)
    sides = [place.sides for place in places if len(place.sides) == 1]
    side = sides[0] if len(sides) == 1 else ()
    if not side and any(place.site for place in places):
        return "text", (), ()
    section = header_organ(header)
    under = SECTION_ORGAN[section] if section else header_organs(header, organs)
    return ("organ" if under or side else "text"), under or organs, side


@lru_cache(maxsize=20_000)
def _read(sentence: str, organs: tuple[str, ...], sides: tuple[Side, ...]) -> tuple[Mention, ...]:
    spans = find_spans(sentence, organs)
    if not spans:
        return ()
    if (whole := named_again(sentence, spans)) != sentence:
        sentence, spans = whole, find_spans(whole, organs)
    judged = statuses(sentence, spans)
    named_places = find_places(sentence)
    bound = bind_places(sentence, spans, named_places, sides)
    measured = sizes(sentence, spans, named_places)
    out = []
    for index, span in enumerate(spans):
        kind = FINDINGS[span.name]
        places = bound[index]
        named = {side for place in places for side in place.sides} if kind.sided else set()
        both = len(named) == 2
        number, counted = count(sentence, spans, index, both=both)
        for side in sorted(named) or [None]:
            own = [place for place in places if side is None or not place.sides or side in place.sides]
            size = max((mm for mm, place in measured[index] if place not in places or place in own), default=None)
            where = sites(sentence, span, own)
            site = where[0] if len(where) == 1 else None
            grade = severity(sentence, spans, index, [place for place in own if place.sides])
            finding = make_finding(span.name, side, site, size, number, grade)
            out.append(Mention(finding, judged[index], sentence, counted))
    return tuple(out)


def _deduplicate(findings: list[Finding]) -> list[Finding]:
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.key, []).append(finding)
    sided = {finding.name for finding in findings if finding.side is not None}
    kept = [_combine(group) for group in groups.values() if group[0].side is not None or group[0].name not in sided]
    return in_report_order(kept)


def _combine(group: list[Finding]) -> Finding:
    """Findings and impression repeat each other: the first to tell a thing tells it, distinct sites add up."""
    best = group[0]
    for other in group[1:]:
        if best.site is not None and other.site is not None and best.site != other.site and best.type.countable:
            best = replace(best, count=best.count + other.count)
            if (other.size_mm or 0) > (best.size_mm or 0):
                best = replace(best, site=other.site, size_mm=other.size_mm)
            continue
        best = replace(
            best,
            site=best.site or other.site,
            size_mm=best.size_mm if best.size_mm is not None else other.size_mm,
            severity=best.severity or other.severity,
            count=max(best.count, other.count),
        )
    return best
