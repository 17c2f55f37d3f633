"""Where in the body a sentence puts its findings: side and site, each tied to the finding it belongs to.

A word before a finding with nothing but adjectives between belongs to it ("small left effusion"). So does one
behind it after a preposition ("effusion on the left"). A word tied to none is the topic of what follows ("the left
kidney contains a stone and a cyst"). A finding with no word of its own takes its neighbour's in a list ("left
effusion and atelectasis"), then the topic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vol3d.text.mentions import Span
from vol3d.text.ontology import FINDINGS, Side

BOTH: tuple[Side, ...] = ("left", "right")


@dataclass(frozen=True, slots=True)
class Place:
    """A place named at text[start:end]: its sides (none, one or two) and its site as written."""

    start: int
    end: int
    sides: tuple[Side, ...]
    site: str | None


# Side words that belong to fixed anatomy say nothing about the side of a finding.
_FIXED = re.compile(
    r"\b(?:left|right)(?=[- ](?:hepatic (?!lobe)|main(?:stem)?\b|coronary|ventric|atri|anterior|circumflex|heart|colon"
    r"|hemicolon|adrenal|iliac|femur|femoral|acetab|ribs?\b|(?:\w+ )rib\b|humer|clavic|scapul|ischi|pubic|sacral"
    r"|pedicle|transverse|ovar|adnexa|breast|thyroid|portal|gastric|psoas|paratracheal|hilar|supraclav|axill"
    r"|upper quadrant|lower quadrant))"
)
_SHORT: dict[str, tuple[Side, str]] = {
    "lul": ("left", "upper lobe"),
    "lll": ("left", "lower lobe"),
    "rul": ("right", "upper lobe"),
    "rml": ("right", "middle lobe"),
    "rll": ("right", "lower lobe"),
}
_SITE = (
    r"upper lobes?|middle lobe|lower lobes?|lingula(?:r(?: segment| lobe)?)?|upper poles?|lower poles?"
    r"|(?:mid|middle|inter)[- ]?pol(?:e|ar(?: region)?)"
    r"|(?:upper|middle|lower)(?=,? (?:(?:and|or) )?(?:left|right) (?:[\w,]+ ){0,4}lobes\b)"
)
_NOUN = r"(?:lung )?bases?|lungs?|kidneys?|hemithorax|hemithoraces|sides?|pleural space|pleural cavity|groins?"
_PLACE = re.compile(
    r"\b(?:"
    r"(?P<short>lul|lll|rul|rml|rll)"
    r"|(?P<liver>(?:left|right) (?:hepatic )?lobe)(?: of the liver)?"
    r"|(?P<two>left|right)(?:[- ]sided)? (?P<first>upper|middle|mid|lower) (?:and|or|&)"
    r" (?P<second>upper|middle|mid|lower) (?P<part>lobe|pole)s?"
    r"|(?P<side>left|right|bilateral(?:ly)?|both(?! (?:an?|left|right)\b)|bibasilar|bibasal"
    r"|(?:each|either)(?= (?:side|lung|kidney|hemithorax|groin)))"
    rf"(?:[- ]sided)?(?:[- ](?P<site>{_SITE}))?(?:[- ](?:{_NOUN}))?"
    rf"|(?P<lone>{_SITE})"
    r")\b"
)
_NORMAL = re.compile(
    r" (?:(?:is|are|appears?|remains?) )?(?:(?:\w+ly|otherwise|within) )?(?:normal|unremarkable|clear(?! of)|intact)\b"
)
"""What is said of a place that has no finding: "right renal stone, left kidney normal"."""
_ASIDE = re.compile(r"\([^()]*\d[^()]*\)")
_OF = re.compile(r"\s*(?:(?:,|of|in)\s*(?:the\s+)?(?:aspect of the\s+)?)?")
_CHAIN = re.compile(
    r"\s*(?:and/or|and|or|nor|&|/|>|<|,\s*and|,|to|(?:(?:greater|more|less|larger|smaller|worse) )?than)\s*"
    r"(?:in\s+|on\s+)?(?:the\s+|an?\s+)?(?:(?:trace|tiny|small|mild|moderate|large|severe|massive|minimal|loculated|layering|simple"
    r"|stable|new|persistent|residual|increas(?:ing|ed)|decreas(?:ing|ed))\s+){0,3}"
)
STOP = (
    r"in|on|at|of|the|with|and|or|nor|is|are|was|were|has|have|shows?|contains?|there|without|but|to|from|for|seen"
    r"|present"
)
# Words and separators share no character, so that no text, however odd, makes these patterns slow.
PRE = re.compile(rf"(?:[\s-]+(?!(?:{STOP})\b)[\w./×%]+)*[\s-]*")
_POST = re.compile(
    r"(?:\b(?:adjacent to|next to|in|on|at|of|within|involving|along|affecting|near|from|over|about|throughout)\s+"
    r"(?:the\s+|each\s+)?(?:\w+\s+){0,2}|\()\s*$"
)
_SECOND = re.compile(
    r"(?:[\s,]*(?:and )?(?:\d[\w. ]*)?|\s\w+\s)(?:in|on) (?:the )?|[\s,]*\d[\d.x ]*[cm]m[\s,]*(?:and )?"
)
_NEW_SUBJECT = re.compile(r"\b(?:but|there is|there are|and the|while|whereas)\b|;")
_NEAR = re.compile(
    r"[\s,:(-]*(?:(?:is|are)\s+)?(?:\d[\d.x ]*[cm]m )?"
    r"(?:(?:only|mainly|predominantly|more|worse|greater|larger)\s+)?(?:on the\s+)?"
)
_LINK = re.compile(
    r"(?!.*\bin the\b)[\s,/-]*(?:(?:and|or|nor|with|&|plus|as well as|from"
    r"|(?:due to|secondary to|caused by|related to|accompanying|associated with|adjacent to)(?: the)?"
    r"|(?:is |are )?(?:favou?red )?over|rather than"
    r"|versus|vs)\b)?\s*"
    rf"(?:(?!(?:{STOP})\b)[\w./]+[\s-]+){{0,4}}"
)
_WITH = re.compile(rf"\s+(?:with|due to|causing|from)\s+(?:(?!(?:{STOP})\b)[\w./]+[\s-]+){{0,4}}")
_LINKED_WITH = re.compile(
    r"\b(?:associated|adjacent|overlying|underlying|accompanying|compressi(?:ve|on)|passive|ipsilateral|surrounding)\b"
)


def find_places(text: str) -> list[Place]:
    """Find the sides and sites one lower-case sentence names."""
    text = _FIXED.sub(lambda match: "~" * len(match.group()), text)
    out: list[Place] = []
    for match in _PLACE.finditer(text):
        place = _read(match)
        if out and _OF.fullmatch(text, out[-1].end, place.start):
            last = out[-1]
            if last.site and not last.sides and not place.site:
                out[-1] = Place(last.start, place.end, place.sides, last.site)
                continue
            if place.site and not place.sides and not last.site:
                out[-1] = Place(last.start, place.end, last.sides, place.site)
                continue
        out.append(place)
    return _split_pairs([place for place in out if not _NORMAL.match(text, place.end)], text)


def _read(match: re.Match[str]) -> Place:
    group = match.groupdict()
    if group["short"]:
        side, site = _SHORT[group["short"]]
        return Place(match.start(), match.end(), (side,), site)
    if group["liver"]:
        return Place(match.start(), match.end(), (), f"{group['liver'].split()[0]} lobe")
    if group["two"]:
        first, second = (f"{group[which]} {group['part']}" for which in ("first", "second"))
        return Place(match.start(), match.end(), _sides(group["two"]), f"{_site(first)}|{_site(second)}")
    site = _site(group["site"] or group["lone"])
    sides = _sides(group["side"])
    if site in ("lingula", "middle lobe") and len(sides) != 1:
        sides = ("left",) if site == "lingula" else ("right",)
    return Place(match.start(), match.end(), sides, site)


def _split_pairs(places: list[Place], text: str) -> list[Place]:
    out = []
    for place in places:
        if place.site and "|" in place.site:
            middle = text.index(" ", place.start)
            first, second = place.site.split("|")
            out.append(Place(place.start, middle, place.sides, first))
            out.append(Place(middle, place.end, place.sides, second))
        else:
            out.append(place)
    return out


def _sides(word: str | None) -> tuple[Side, ...]:
    if word is None:
        return ()
    if word in ("left", "right"):
        return (word,)  # type: ignore[return-value]
    return BOTH


def _site(word: str | None) -> str | None:
    if word is None:
        return None
    word = word.replace("-", " ").rstrip("s")
    if word in ("upper", "middle", "lower"):
        return f"{word} lobe"
    if word.startswith("lingula"):
        return "lingula"
    if word.startswith(("mid", "inter")) and "pol" in word:
        return "mid pole"
    return word


def bind_places(text: str, spans: list[Span], places: list[Place], before: tuple[Side, ...] = ()) -> list[list[Place]]:
    """Tie each place to the finding it belongs to.

    Args:
        text: One sentence, lower case.
        spans: Its findings.
        places: Its places.
        before: Sides of the header it stands under, taken where the sentence names none.

    Returns:
        The places of each finding, in the order of `spans`.
    """
    # What is measured or referred to in brackets ("(4 mm)", "(series 3, image 45)") stands between no two places.
    text = _ASIDE.sub(lambda m: m[0] if _PLACE.search(m[0]) else " " * len(m[0]), text)
    bound: list[list[Place]] = [[] for _ in spans]
    behind: list[bool] = [False] * len(spans)
    topics: list[Place] = []
    owner: dict[int, set[int]] = {}
    for index in range(len(places) - 1, -1, -1):
        owner[index] = _forward_owner(text, spans, places, index, owner)
    for index, place in enumerate(places):
        owners = set(owner[index])
        previous = max((i for i, s in enumerate(spans) if s.end <= place.start), default=None)
        if previous is not None and _is_behind(text, spans, previous, places, index, owner):
            for which in (i for i, s in enumerate(spans) if s.end == spans[previous].end):
                owners.add(which)
                behind[which] = True
            owner[index] = owners
        for which in owners:
            bound[which].append(place)
        if not owners:
            topics.append(place)
    if topics and spans:
        _loose(text, spans, topics, bound)
    return [_inherit(text, spans, i, bound, behind, topics, before) for i in range(len(spans))]


def _forward_owner(
    text: str, spans: list[Span], places: list[Place], index: int, owner: dict[int, set[int]]
) -> set[int]:
    place = places[index]
    inside = {i for i, s in enumerate(spans) if s.start <= place.start and place.end <= s.end}
    if inside:
        return inside
    following = next((i for i, s in enumerate(spans) if s.core >= place.end), None)
    if following is None:
        return set()
    following_core = spans[following].core
    same = {i for i, s in enumerate(spans) if s.core == following_core}
    if PRE.fullmatch(text, place.end, following_core):
        return same
    if index + 1 < len(places) and places[index + 1].end <= following_core:
        follower = places[index + 1]
        behind_something = _POST.search(text[: place.start]) is not None
        if not behind_something and _CHAIN.fullmatch(text, place.end, follower.start):
            return set(owner[index + 1])
    return set()


def _is_behind(
    text: str, spans: list[Span], previous: int, places: list[Place], index: int, owner: dict[int, set[int]]
) -> bool:
    place = places[index]
    start = spans[previous].end
    if index and places[index - 1].start >= start:
        # "in the left upper lobe and right lower lobe": the second follows the first.
        if previous not in owner[index - 1] or owner[index]:
            return False
        gap = (places[index - 1].end, place.start)
        return any(pattern.fullmatch(text, *gap) for pattern in (_CHAIN, _OF, _SECOND))
    between = text[start : place.start]
    if _NEW_SUBJECT.search(between):
        return False
    if _POST.search(between):
        return not owner[index] or not re.search(r",|\band\b|\bwith\b", between)
    return not owner[index] and _NEAR.fullmatch(between) is not None


def _loose(text: str, spans: list[Span], topics: list[Place], bound: list[list[Place]]) -> None:
    # The last words of a sentence, with no finding after them, speak of the last finding if it has no place yet.
    last = len(spans) - 1
    if any(place.end <= spans[last].core for place in topics):
        return
    for place in list(topics):
        gap = text[spans[last].end : place.start]
        if place.start >= spans[last].end and not bound[last] and not _NEW_SUBJECT.search(gap):
            bound[last].append(place)
            topics.remove(place)


def _inherit(
    text: str,
    spans: list[Span],
    index: int,
    bound: list[list[Place]],
    behind: list[bool],
    topics: list[Place],
    before: tuple[Side, ...],
) -> list[Place]:
    own = list(bound[index])
    if any(place.sides for place in own) or not FINDINGS[spans[index].name].sided:
        return own or _topic(spans[index], topics, 0)
    topic = _topic(spans[index], topics, spans[index - 1].end if index else 0)
    if topic:
        return own + topic
    for other in range(index - 1, -1, -1):
        gap = text[spans[other].end : spans[index].core]
        linked = (
            _LINK.fullmatch(gap)
            or (_LINKED_WITH.search(gap) and not re.search(r"\bbut\b|;", gap))
            or (bound[other] and _WITH.fullmatch(text, max(bound[other][-1].end, spans[other].end), spans[index].core))
        )
        if not linked:
            break
        sides = [place for place in bound[other] if place.sides]
        if sides:
            return own + sides
    following = index + 1
    if following < len(spans) and behind[following] and _LINK.fullmatch(text, spans[index].end, spans[following].core):
        return own + [place for place in bound[following] if place.sides]
    topic = _topic(spans[index], topics, 0)
    if topic:
        return own + topic
    return own + ([Place(0, 0, before, None)] if before else [])


def _topic(span: Span, topics: list[Place], after: int) -> list[Place]:
    """The latest topic before the finding, with those that stand beside it ("left upper lobe and right lower lobe")."""
    earlier = [place for place in topics if after <= place.start and place.end <= span.core]
    return [earlier[-1]] if earlier else []
