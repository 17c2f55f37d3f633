"""What a sentence leaves out because it was just named: the finding is written again, to be read as any other.

"Left effusion is larger than right", "small right effusion, trace left", "no hydronephrosis on the right; mild on the
left", "a nodule in the RUL and another in the LLL". A side alone is another mention only where the finding was not
given it yet.
"""

from __future__ import annotations

import re

from vol3d.text.mentions import Span
from vol3d.text.ontology import FINDINGS, GRADE, Finding, Side

_SIZE_WORD = r"trace|tiny|small|moderate|large|massive|minimal"
_GRADE_WORD = r"mild|moderate|severe|marked|minimal|slight"
_AMOUNT = rf"(?:very )?(?:{_SIZE_WORD}|{_GRADE_WORD})(?:(?: to |-| or )(?:{_SIZE_WORD}|{_GRADE_WORD}))?"
_WHERE = r"(?:(?:on|at|in) )?(?:the )?(?:left|right)(?: side)?"
_ENDS = r"(?=\s*(?:$|[,;()]|(?:and|with|but|without|which|while)\b))"
_PART = re.compile(
    rf"(?P<lead>(?:[,;]|\b(?:and|but)\b)(?: (?:and|but|with))? )(?P<what>{_AMOUNT}|none) (?P<where>{_WHERE}){_ENDS}"
)
_TURNED = re.compile(
    rf"(?P<lead>[,;]|\b(?:and|but)\b) (?P<where>{_WHERE})(?: is| are)? (?P<what>{_AMOUNT}|none){_ENDS}"
)
_THAN = re.compile(
    r"(?P<lead>(?:(?:larger|greater|more|smaller|less|worse|bigger|higher) than(?: (?:that )?on)?|[<>]) )"
    rf"(?P<what>)(?P<where>(?:the )?(?:left|right)){_ENDS}"
)
_BUT_NOT = re.compile(
    r"\b(?:left|right)(?:[- ]sided)?(?P<rest>,? (?:and|but) (?:no|not)(?: an?)? (?:left|right)(?:[- ]sided)? )"
)
_PRONOUN = re.compile(
    r"\b(?:one|another|the other|that)\b(?=(?: \([^()]*\)| measuring [\d.x ]+[cm]m)? (?:in|on|at|within) (?:the )?"
    r"(?:left|right|lingula|[rl][uml]l)\b)"
)
_THAT = re.compile(r"(?:that|the one|the other)(?= (?:on|in) the (?:left|right)\b)")
_GATE = re.compile(r"\b(?:left|right)\b")
_SIDE = re.compile(r"\b(?:left|right|bilateral|both)\b")
_ALONE = re.compile(rf"(?P<what>{_AMOUNT}|none)(?:(?P<where> {_WHERE})(?P<tail>(?:,| with| and| without).*)?)?")
_ON_A_SCALE = {GRADE: re.compile(rf"\b(?:{_GRADE_WORD})\b")}
_TOKEN = (
    r"left|right|bilateral|upper|mid|middle|lower|lobes?|lungs?|bases?|apex|apical|lingula|rul|rml|rll|lul|lll|in|on|at"
    r"|the|of|and|sides?|kidneys?|poles?|interpolar|region|x|by|mm|cm|unchanged|stable|new|solid|ground-glass"
    r"|calcified|\d+(?:\.\d+)?(?:mm|cm)?"
)
_ITEM = re.compile(
    r"(?=.*\b(?:left|right|bilateral|lingula|[rl][uml]l)\b)(?!.*(?<!in the )\b(?:left|right) (?:kidney|lung)\b)"
    rf"(?:(?:{_TOKEN})(?:[\s,():-]+|$))+"
)
_SIDE_ITEM = re.compile(
    rf"(?P<side>left|right|bilateral)(?: side)? ?: ?(?P<what>{_AMOUNT}|none|no|absent|nil|yes|present)"
)
_PLURAL = re.compile(r"(?<=[^siu])s$")


def named_again(text: str, spans: list[Span]) -> str:
    """A lower-case sentence with its findings written where it has a pronoun or another side alone for them."""
    for match in reversed(list(_PRONOUN.finditer(text))):
        named = [span for span in spans if span.end <= match.start()]
        if named and FINDINGS[named[-1].name].sided:
            noun = _PLURAL.sub("", text[named[-1].core : named[-1].end])
            text = f"{text[: match.end()]} {noun}{text[match.end() :]}"
    if not _GATE.search(text):
        return text
    for match in reversed(list(_BUT_NOT.finditer(text))):
        for span in [span for span in spans if span.start == match.end()][:1]:
            text = f"{text[: match.start('rest')]} {text[span.start : span.end]}{text[match.start('rest') :]}"
    for match in sorted((m for p in (_PART, _TURNED, _THAN) for m in p.finditer(text)), key=lambda m: -m.start()):
        earlier = [span for span in spans if span.end <= match.start() and FINDINGS[span.name].sided]
        if not earlier:
            continue
        span = earlier[-1]
        start = max((s.end for s in spans if s.end <= span.start), default=0)
        told = set(_SIDE.findall(text[start : span.core if match.re is _THAN else match.start()]))
        side = "left" if "left" in match["where"] else "right"
        if told != {"right" if side == "left" else "left"}:
            continue
        again = _written(match, text[span.start : span.end])
        text = f"{text[: match.start()]}{match['lead'].rstrip()} {again}{text[match.end() :]}"
    return text


def continued(text: str, before: Finding | None, sides: tuple[Side, ...]) -> str:
    """A sentence of nothing but an amount and a side ("mild on the left"; "that on the left is small"), with the
    finding before it.

    Args:
        text: One sentence, lower case.
        before: The last finding of the sentence before.
        sides: Sides of the header it stands under.
    """
    if before is not None and before.type.sided and (that := _THAT.match(text)):
        return before.name + text[that.end() :]
    match = _ALONE.fullmatch(text)
    if match is None or before is None or not before.type.sided or not (match["where"] or sides):
        return text
    scale = before.type.severities
    if match["what"] != "none" and not (scale and _ON_A_SCALE.get(scale, _ALONE).search(match["what"])):
        return text
    return _written(match, before.name) + (match["tail"] or "")


def is_item(text: str) -> bool:
    """Whether a text is a place and what it has, and no sentence of its own: "rul 5 mm", "left: none"."""
    return (_SIDE_ITEM.fullmatch(text) or _ITEM.fullmatch(text)) is not None


def listed(text: str, header: str) -> str:
    """An item, with the finding of the header it stands under."""
    if not header or not is_item(text):
        return text
    name = _PLURAL.sub("", header)
    if match := _SIDE_ITEM.fullmatch(text):
        return f"{match['side']} {name} is {match['what']}"
    return f"{name} is {text}"


def _written(match: re.Match[str], name: str) -> str:
    what, where = match["what"], (match["where"] or "").strip()
    words = ("no" if what == "none" else what, name, where)
    if what == "" or not where.startswith(("on", "at", "in", "the")):
        words = (words[0], where.removeprefix("the "), name)
    return " ".join(filter(None, words))
