"""Whether a sentence says that a finding is there: negation, history and doubt, each with its scope.

A negation before ("no", "without", "free of") reaches forward over a list, until something breaks it: "but",
"except", "with", "there is", or a new item with its own size, amount or article ("no effusion, 5 mm nodule on
the left"). A negation behind ("is not seen", "has resolved", "ruled out") reaches back over its own subject. The past
reaches over what the patient had or underwent, and ends where the sentence comes to today ("history of cirrhosis with
ascites"); what is asked, or was seen in an earlier exam, reaches to its end ("evaluate for pneumonia with effusion").

Source: the idea of cue and scope is NegEx (Chapman et al., J Biomed Inform 2001;34:301-310); cues and scopes are ours.
"""

from __future__ import annotations

import re
from typing import Literal

from vol3d.text.mentions import Span
from vol3d.text.places import PRE

Status = Literal["present", "possible", "absent", "historical"]
"""possible: "may represent", "cannot be excluded". historical: of the past, or only asked about."""

_SEEN = (
    r"(?:seen|identified|visuali[sz]ed|present|noted|demonstrated|evident|detected|appreciated|observed|found|visible"
    r"|apparent|shown|encountered|distinguished|discerned|selected|determined|definitely seen|clearly seen)"
)
_BE = r"(?:is|are|was|were|has been|have been|appears?|remains?)"
BREAK = re.compile(
    r"\b(?:but|however|although|though|whereas|while|yet|except(?: for| that)?|apart from|aside from|other than|beyond"
    r"|with the exception of|save for|besides|which|who|despite|there (?:is|are|was|were|has been|remains?)"
    r"|(?<!consistent )(?<!compatible )(?<!associated )(?<!or )with(?! or without))\b"
    r"|\band (?=the\b|there\b|this\b|these\b)|[()]"
)
_OBJECT = r"(?:an?|any|the|evidence|contain\w*|show\w*|demonstrat\w+|ha[sd]|have)\b"
_FORWARD = re.compile(
    rf"\b(?:(?<=there is )no longer|(?<=there are )no longer|no longer(?= {_OBJECT})|no longer {_SEEN}(?= (?:is|are)\b)"
    r"|no(?! longer| doubt|t\b)|not(?! (?:only|just|merely)\b)|without|nor|neither|never|zero|nil(?! (?:else|acute|of))"
    r"|absen(?:t|ce of)|neg(?:ative)? for|fail(?:s|ed)? to (?:show|demonstrate|reveal|identify|detect)"
    r"|low (?:suspicion|likelihood|probability|concern) (?:for|of)"
    r"|free (?:of|from)|lack(?:s|ing)?(?: of)?|denies|devoid of|clear of|resolution of|resolved|clearing of|rather than"
    r"|instead of|mimic(?:s|king)?|simulating"
    r"|w/o|rule[sd]? out|exclud(?:es?|ing)|non(?=-(?:aneurysmal|enlarged|dilated))|unlikely|nothing"
    r"|does not|do not|cannot be|interval removal of|favou?r\w*\b[\w ,-]{0,80}? over)\b(?!:)"
)
_NOT_NEGATION = re.compile(
    r"\b(?:no|without|not)\s+(?:(?:significant|interval|substantial|appreciable|definite|obvious|major|marked|other"
    r"|adverse|(?:evidence|signs?) of|significantly|substantially|appreciably|really|yet|overtly)\s+)*"
    r"(?:changed?|increased?|decreased?|difference"
    r"|progression|progressed|improvement|improved|resolution|resolved|worsening|worsened|excluded?|ruled out|rule out"
    r"|growth|grown|cleared|disappeared|gone|subsided|enlargement of (?:the|this|these)(?! (?:heart|cardiac|spleen))"
    r"|(?:rupture|leak\w*|shift|extension|mass effect|complications?) (?:of|from|by|on|due to) (?:the|this|these))\b"
    rf"|\bnot (?:\w+ly )?{_SEEN} (?:previously|before|earlier|(?:on|in) (?:the |a )?(?:prior|previous|earlier))\b"
    r"|\b(?:cannot|can't|can not|could not|not)\s+(?:\w+\s+)?(?:be\s+)?(?:entirely\s+|completely\s+)?"
    r"(?:exclude|excluded|rule out|ruled out)\b"
    r"|\bnot (?:only|just|merely)\b|\bno doubt\b"
    r"|\b(?:incomplete(?:ly)?|partial(?:ly)?|partly|near(?:ly)?|almost)[ -](?:complete(?:ly)? )?"
    r"(?:resolved|resolution(?: of)?|cleared|clearing(?: of)?)\b"
)
_CANNOT_EXCLUDE = re.compile(r"\b(?:cannot|can't|can not|could not|not)\s+(?:\w+\s+)*?(?:exclude|rule)")
_BACKWARD = re.compile(
    rf"\b(?:{_BE} {_SEEN} )?(?:in|on) neither\b"
    rf"|\bnot (?:\w+ly )?(?:{_SEEN}|enlarged|dilated|obstructed|calcified|aneurysmal|there)\b"
    rf"|(?<!there is )(?<!there are )\bno longer(?! {_OBJECT}| {_SEEN} (?:is|are)\b)(?: (?:{_SEEN}|there))?\b"
    rf"|\b(?:{_BE} )?absent\b"
    r"|\b(?:has|have|had|now|interval(?:ly)?|completely|fully|since|is|are) (?:\w+ )?"
    r"(?:resolved|cleared|disappeared|gone|subsided)\b"
    r"|\b(?:resolved|gone|disappeared|subsided)\s*$"
    r"|\b(?:(?:is|are|was|were|has been|have been) )?(?:ruled out|excluded)\b"
    r"|\b(?:is|are|was|were) (?:\w+ )?unlikely\b|\bunlikely\s*$"
    r"|(?:\bis|\bare|:|=|-)\s*(?:none|no(?: (?:evidence|suspicious))?|nil|negative|neg|0)(?=\s*(?:[,(]|$))"
    r"|\bnot (?:currently )?(?:there|visible)\b|\b(?:none|nil)\s*$"
)
_POSITIVE_VERB = re.compile(
    rf"\b{_BE} (?:again |also |now )?{_SEEN}\b(?! (?:previously|before|(?:on|in) (?:the |a )?(?:prior|previous)))"
    r"|\bthere (?:is|are)\b"
    r"|\b(?:shows?|contains?|demonstrates?|has|have) (?:an?\b|the\b)"
)
_AMOUNT = r"(?:small|moderate|large|mild|severe|tiny|trace|minimal|massive|marked)(?! bowel)(?:ly|[- ]sized)?"
_SIZE = r"\d+(?:\.\d+)?\s*-?(?:mm|cm)"
_EXAM = r"(?:ct|study|exam\w*|imaging|scan|mri|radiograph|comparison)s?\b"
_HISTORY = re.compile(
    r"\b(?:(?P<past>history of|h/o|hx of|previously|formerly|status post|s/p|past"
    rf"|(?:previous|prior)(?! {_EXAM}))|previous|evaluat(?:e|ion) (?:for|of)"
    r"|assess(?:ment)? for|correlat(?:e|ion) (?:\w+ )?for|to (?:exclude|rule out)|please (?:exclude|rule out)|r/o|query"
    r"|screening for|risk (?:of|for)"
    r"|work-?up (?:for|of)|(?:on|since|from|than|to|with) (?:the )?prior|prior|old (?:ct|study|exam))\b"
)
_TODAY = re.compile(
    r"\b(?:but|however|although|though|whereas|while|yet|now|is|are|has|have|shows?|contains?|there"
    r"|(?<!associated )(?<!consistent )(?<!compatible )(?<!or )with(?! or without))\b"
    rf"|,\s*(?:and\s+)?(?:{_SIZE}|{_AMOUNT}|new|stable)\b"
    r"|\b(?:\w+(?:ectomy|o[ts]tomy|centesis|plasty|desis)|surgery|repair|resection|transplant\w*|cabg|bypass|biopsy"
    r"|placement|removal|drainage|ablation|whipple|stent\w*)(?: \w+)??\s*(?:,|\band\b)"
)
"""Where the past ends: a verb of the present, what goes with it, a new item, or a list after what was done."""
_COMPARISON = re.compile(
    r"(?:on|since|from|than|to|with|in)\s+(?:the\s+|a\s+)?(?:prior|previous)\b"
    rf"|(?:prior|previous)\s+{_EXAM}"
    r"(?!(?: \w+){0,3} (?:showed|demonstrated|revealed|described|reported))"
    r"|previously(?=,? (?:\d|measur))"
)
_CURRENT = re.compile(
    r"\b(?:unchanged|stable|persist\w*|again|now|current(?:ly)?|measures|measuring|increas\w+(?! risk)|decreas\w+"
    r"|larger|smaller|remains?|residual|grown|improved|not (?:significantly )?changed|no (?:\w+ )?change|similar|still"
    rf"|{_BE} (?:again )?{_SEEN})\b"
)
_POSSIBLE = re.compile(
    r"\b(?:possibl[ey]|probabl[ey]|likely|suspicious|suspected|suspicion|concern(?:ing)?|may|might|could"
    r"|question(?:able|ed)?|suggest\w*|cannot|equivocal|versus|vs)\b"
)
_TAKEN = re.compile(
    r"(?: (?:on|in|at) (?:the )?[\w ]{1,20}?)? (?:has been|have been|was|were) "
    r"(?:drained|evacuated|resected|removed|extracted)\b"
)
_SAID = re.compile(r" (?:is|are|has|have) ")
"""The verb within a finding that is a statement: "heart is enlarged"."""
_WHICH = re.compile(r"(?:,? (?:which|that) )?$")
_INSIDE = re.compile(r" (?:not|no|no longer|without) ")
_THEN = re.compile(r"\b(?:post|(?<!the )following|after)\b(?! contrast)")
_REPAIRED = re.compile(r" (?:(?:mesh|surgical|open|laparoscopic|endovascular) )?repair(?:s|ed)?\b")
_MENDED = re.compile(
    r"(?:(?:repair|resection|excision) of(?: the| an?)?|(?<!partially )(?<!incompletely )(?:resected|excised))\b"
)
_DIRECT = re.compile(r"(?: over|low \w+ (?:for|of))$")
"""A denial of nothing but the finding right behind it."""
_LIST_OR = re.compile(r"\b(?:or|nor)\b")
_NEXT_IN_LIST = re.compile(r"[\s,]*")
_RESTART = re.compile(
    r"(?:,|\band\b)\s*(?:and\s+|or\s+)?(?:"
    r"(?:an?|the|this)\b|(?:one|two|three|four|five|six|multiple|several|few|numerous|single)\b"
    r"|(?:new|stable|unchanged|persistent|residual|known)\b"
    rf"|{_AMOUNT}\b)"
)
_MEASURED = re.compile(
    rf"(?:,|\band\b)\s*(?:and\s+)?(?:an?\s+)?(?:{_SIZE}|{_AMOUNT} (?:left|right|bilateral))\b{PRE.pattern}$"
)
_SIDE_RESTART = re.compile(r",\s*(?:left|right|bilateral)\b")
_VERB_THEN_COMMA = re.compile(rf"\b{_BE} {_SEEN}\b.*(?:,|;|\band\b)")
_OWN_VERB = re.compile(rf"\s*(?:{_BE} (?:again |also )?(?:{_SEEN}|small|moderate|large|mild|severe|unchanged|stable))")


def statuses(text: str, spans: list[Span]) -> list[Status]:
    """Judge every finding named in one lower-case sentence."""
    if not spans:
        return []
    cues = _Cues(text)
    return [_status(text, spans, index, cues) for index in range(len(spans))]


class _Cues:
    """Every cue word of one sentence, found once."""

    def __init__(self, text: str):
        pseudo = [m.span() for m in _NOT_NEGATION.finditer(text)]

        def real(match: re.Match[str]) -> bool:
            return not any(low < match.end() and match.start() < high for low, high in pseudo)

        self.backward = [m.span() for m in _BACKWARD.finditer(text) if m.start() and real(m)]
        self.backward = [(start - len(_WHICH.search(text, 0, start)[0]), end) for start, end in self.backward]
        self.forward = [
            m.span()
            for m in _FORWARD.finditer(text)
            if real(m) and not any(low <= m.start() < high for low, high in self.backward)
        ]
        comparison = [m.span() for m in _COMPARISON.finditer(text)]
        self.history = [
            (m.end(), _until(text, m))
            for m in _HISTORY.finditer(text)
            if not any(low <= m.start() < high or low < m.end() <= high for low, high in comparison + pseudo)
        ]
        self.breaks = [m.span() for m in BREAK.finditer(text)]
        self.current = _CURRENT.search(text) is not None
        self.possible = [m.start() for m in _POSSIBLE.finditer(text)]
        self.cannot_exclude = _CANNOT_EXCLUDE.search(text) is not None


def _until(text: str, cue: re.Match[str]) -> int:
    """Where the reach of a word of history ends."""
    today = _TODAY.search(text, cue.end()) if cue["past"] else None
    return today.end() if today else len(text)


def _status(text: str, spans: list[Span], index: int, cues: _Cues) -> Status:
    span = spans[index]
    inside = text[span.core : span.end]
    if _INSIDE.search(inside) or _TAKEN.match(text, span.end):
        return "absent"
    if any(low < span.core and span.end <= high for low, high in cues.backward):
        return "absent"
    mended = any(PRE.fullmatch(text, match.end(), span.core) for match in _MENDED.finditer(text, 0, span.core))
    if _REPAIRED.match(text, span.end) or (mended and not cues.current):
        return "historical"
    low = max([end for _, end in cues.breaks if end <= span.start], default=0)
    high = min([start for start, _ in cues.breaks if start >= span.end], default=len(text))
    if _negated_before(text, spans, index, cues, low) or _negated_behind(text, spans, index, cues, low, high):
        return "absent"
    if any(end <= span.start < until for end, until in cues.history) and not cues.current:
        return "historical"
    if cues.cannot_exclude or any(low <= start < high for start in cues.possible):
        return "possible"
    return "present"


def _negated_before(text: str, spans: list[Span], index: int, cues: _Cues, low: int) -> bool:
    span = spans[index]
    starts = [end for start, end in cues.forward if start >= low - 1 and end <= span.core]
    if not starts:
        return False
    begin = max(starts)
    if _DIRECT.search(text, 0, begin) and not PRE.fullmatch(text, begin, span.core):
        return False
    if _THEN.search(text, begin, span.start):  # "no pneumothorax after biopsy of the nodule"
        return False
    listed = [s for s in spans[:index] if s.start >= begin or s.core >= begin]
    if not listed:
        return True
    closed = _closed(text, spans, listed[-1].end)
    # The list is broken when any item from the first to this one starts anew.
    for earlier, item in zip(listed, [*listed[1:], span], strict=True):
        if item.core < earlier.end:
            continue
        if _restarts(text, earlier.end, item, closed=closed):
            return False
    return True


def _restarts(text: str, gap_start: int, item: Span, *, closed: bool) -> bool:
    gap = text[gap_start : item.core]
    if _VERB_THEN_COMMA.search(gap) or _MEASURED.search(gap):
        return True
    if closed:
        return False
    if _RESTART.search(gap) or _SIDE_RESTART.search(gap):
        return True
    return _OWN_VERB.match(text, item.end) is not None and "," in gap


def _closed(text: str, spans: list[Span], start: int) -> bool:
    """Whether an "or" goes on with the list of findings, not with what is said of one ("upper or middle lobe")."""
    for match in _LIST_OR.finditer(text, start):
        before = any(
            _NEXT_IN_LIST.fullmatch(text, span.end, match.start()) for span in spans if span.end <= match.start()
        )
        behind = any(PRE.fullmatch(text, match.end(), span.start) for span in spans if span.start >= match.end())
        if before or behind or text[: match.start()].rstrip().endswith(","):
            return True
    return False


def _negated_behind(text: str, spans: list[Span], index: int, cues: _Cues, low: int, high: int) -> bool:
    span = spans[index]
    # A post-modifier in brackets or a relative clause does not end the subject's reach to its own verb.
    for start, _ in cues.backward:
        if not span.end <= start <= high:
            continue
        between = text[span.end : start]
        if _POSITIVE_VERB.search(between):
            continue
        later = [s for s in spans[index + 1 :] if s.end <= start]
        head = text[low:start]
        opened = _opens_positively(text, low, span, head) or _SAID.search(text, span.core, span.end) is not None
        if opened and later and re.search(r",|\band\b", text[span.end : later[-1].core]):
            continue
        return True
    return False


def _opens_positively(text: str, low: int, span: Span, head: str) -> bool:
    before = text[max(0, low - 12) : span.core]
    return re.search(r"\bthere (?:is|are|was|were)\b", before) is not None or (
        _POSITIVE_VERB.search(head[: max(0, span.core - low)]) is not None
    )
