"""Where a sentence names a finding: direct terms ("splenomegaly") and heads that need an organ ("cyst").

"A 12 mm cyst" is a hepatic cyst or a renal cyst by the organ words around it: right before the head ("renal
cortical cyst"), after it ("cyst in the upper pole of the left kidney"), earlier in the sentence ("the left kidney
contains a cyst"), or in the section's header ("Kidneys: 12 mm cyst"). Heads without any such word fall to their
default, or are no finding of ours (a thyroid nodule, a pancreatic cyst).

Lobes, poles and segments are parts of several organs, and are read as parts of the one they are tied to in the same
ways ("left hepatic lobe", "left lobe of the thyroid", "Thyroid: nodule in the left lobe").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Span:
    """A finding named at text[start:end]; `core` is where its own word starts, without organ adjectives."""

    start: int
    end: int
    core: int
    name: str


@dataclass(frozen=True, slots=True)
class _Head:
    pattern: re.Pattern[str]
    gate: tuple[str, ...]
    organs: dict[str, str]
    default: str | None = None
    strict: bool = True  # an organ word that is not ours after the head rules it out


_ENLARGED = r"(?: (?:is|are|appears?|remains?|was|has|have))?(?: not| no longer)?(?: (?:\w+ly|again|also|stable and))*"
_SIZE = "(?:sizes?|dimensions?|ratio|index)"


def _big(organ: str) -> str:
    """The pattern of an organ said to be too large."""
    return (
        rf"(?:{organ})(?: {_SIZE})?{_ENLARGED} (?:enlarged(?! lymph| node)|(?:larger|greater) than normal)"
        rf"|(?:{organ}) {_SIZE}{_ENLARGED} increased|(?<!no )(?<!without )increase in (?:the )?(?:{organ}) {_SIZE}"
    )


_LEVEL = (
    r"(?:the )?(?:(?:\w+ )?(?:part|portion|aspect|half|third)s? of (?:the )?)?(?:[\w-]+ ){0,2}?"
    r"(?:[tl]-?(?:1[0-2]|[1-9])(?! nerve| root)|vertebra(?:e|l bod(?:y|ies))?)"
)

_DIRECT: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("pleural effusion", ("pleural", "hydro", "emothora", "emopneumo"),
     r"pleural (?:fluid(?: collections?)?|collections?)|hydro(?:pneumo)?thora(?:x|ces)|ha?emothora(?:x|ces)"
     r"|ha?emopneumothora(?:x|ces)|fluid in the (?:left |right )?pleural (?:space|cavity)"),
    ("pneumothorax", ("pneumothora", "ptx", "pleural"),
     r"(?:hydro|ha?emo)?pneumothora(?:x|ces)|ptx|pleural air"
     r"|air (?:with)?in the (?:left |right )?pleural (?:space|cavity)"),
    ("consolidation", ("consolidat", "space", "lobar", "alveolar", "pneumoni"),
     r"(?:air ?-?space )?consolidat(?:ions?|ive (?:changes?|opacit(?:y|ies)|process)|ed)"
     r"|(?:air ?-?space|lobar|alveolar) (?:disease|opacit(?:y|ies)|opacifications?)|(?:broncho)?pneumonias?"
     r"|pneumonic (?:infiltrat(?:ions?|es?)|changes?)"),
    ("emphysema", ("emphysem", "bullous", "bullae"),
     r"(?<!subcutaneous )(?<!surgical )(?<!mediastinal )(?<!tissue )(?<!wall )emphysema(?:tous(?! \w+itis))?"
     r"(?: changes?)?|bullous (?:disease|changes?)|bullae"),
    ("atelectasis", ("atelecta", "volume loss", "collapse"),
     r"atelecta(?:sis|ses|tic(?: (?:changes?|bands?))?)|(?<!brain )volume loss"
     r"|(?:lobar|(?:sub)?segmental) collapse|collapse(?=(?:/|-| and | with | or )consolidat)"
     r"|(?<=consolidation/)collapse|(?<=consolidation and )collapse"),
    ("cardiomegaly", ("cardi", "heart"),
     r"cardiomegaly|cardiac enlargement|enlargement of the (?:heart|cardiac silhouette)"
     r"|enlarged (?:heart|cardiac silhouette)|" + _big("heart|cardiac(?: silhouette)?|cardiothoracic")),
    ("pericardial effusion", ("pericardi",),
     r"pericardial fluid|fluid (?:with)?in the pericardi(?:um|al (?:space|sac))|h(?:a?)emopericardium"),
    ("coronary artery calcification", ("coronar", "lad", "lcx", "rca", "left main", "circumflex"),
     r"(?:lad|lcx|rca|left main|circumflex)(?: artery)? (?:calcifications?|calcium|calcified plaques?)"
     r"|(?:calcifications?|calcifi(?:c|ed) plaques?|athero\w+) (?:(?:is|are) \w+ )?(?:in|of|within) (?:the )?"
     r"(?:lad|lcx|rca|left main|circumflex)\b"
     r"|(?<!normal )coronar(?:y|ies) (?:arter(?:y|ial|ies) )?(?:(?:and|&) (?:\w+ ){1,3}|(?:[\w-]+ ){0,2})"
     r"(?:calcifications?|calcium|calcified plaques?)|coronary (?:artery |arterial )?athero\w+"
     r"|coronary arteries" + _ENLARGED + r" calcified|calcified coronary (?:arter(?:y|ies)|plaques?)"
     r"|(?:calcif\w+|athero\w+)(?: (?!no\b|not\b|normal\b)\w+){0,12} coronar(?:y|ies)(?: arter(?:y|ies))?"),
    ("aortic aneurysm", ("aaa",), r"t?aaa"),
    ("hepatic steatosis", ("steato", "fat"),
     r"(?:hepatic )?steatosis|hepatosteatosis|steatotic(?: liver)?|fatty liver"
     r"|liver" + _ENLARGED + r"(?: enlarged,? and)? fatty(?: infiltrated)?"
     r"|fatty (?:infiltration|change)(?! of the panc| in the panc)(?: (?:of|in) the liver)?"
     r"|fat (?:infiltration|deposition) (?:of|in) the liver"
     r"|fatty replacement of the liver"),
    ("liver lesion", ("hcc", "hepatocellular"), r"hccs?|hepatocellular carcinomas?"),
    ("gallstones", ("gallstone", "gall stone", "lithiasis"), r"gall ?stones?|chole(?:cysto)?lithiasis"),
    ("splenomegaly", ("sple",),
     r"(?:hepato)?splenomegaly|splenic enlargement|enlargement of the spleen|enlarged (?:liver and )?spleen"
     r"|spleen (?:is|measures|measuring)[\w .]{1,30},? (?:(?:and|which) (?:is )?)?(?:\w+ly )?enlarged|"
     + _big("spleen|splenic")),
    ("renal stone", ("lith",), r"nephrolith(?:iasis|s)?"),
    ("hydronephrosis", ("nephro", "ectasis", "collecting", "renal pelvis", "calyc", "ectasia", "dilat"),
     r"hydro(?:uretero)?nephro(?:sis|tic)|(?:pelvi|pyel|cali)\w*ectasis|pelvi\w+ ectasia"
     r"|(?:(?:left|right) )?(?:(?:collecting|pelvi\w+) systems?|renal pelvis|renal pelves)" + _ENLARGED + " dilated"
     r"|dilat(?:ed|ation of|ion of) (?:the )?(?:(?:left|right) )?"
     r"(?:renal )?(?:collecting systems?|renal pelvis|pelvi\w+ systems?)"
     r"|pelvi\w+ (?:systems? )?dilat(?:at)?ion"),
    ("ascites", ("ascit", "fluid"),
     r"ascit(?:es|ic fluid)|(?:free )?(?:intra-?)?(?:peritoneal|intra-?abdominal) (?:free )?fluid"
     r"|free (?:pelvic |abdominal )?fluid|pelvic fluid(?! collect)|fluid in the (?:abdomen|peritone\w+)"),
    ("bowel obstruction", ("obstruct", "sbo", "lbo"),
     r"(?:(?:small|large)[- ]bowel|bowel|intestinal|colonic) obstructions?|sbo|lbo"
     r"|obstruct(?:ion of|ed) (?:the )?(?:small |large )?(?:bowel|intestine)"
     r"|(?:(?:small|large)[- ])?bowel (?:is|appears) (?:not )?obstructed"
     r"|(?:dilat\w+ (?:\w+ ){0,5}(?:(?:small|large)[- ])?bowel|(?:(?:small|large)[- ])?bowel (?:\w+ ){0,4}dilat\w+)"
     r"[\w ,.]{0,60}? (?:for|with|of|suggest\w+) (?:\w+ )??obstruction"),
    ("inguinal hernia", ("inguinal", "groin"),
     r"(?:inguinal|groin)(?:[- ](?!hernia)[\w,]+){0,4}?[- ]hernia[se]?(?: containing \w+)?"
     r"|hernia[se]? in(?:to)? the (?:left |right )?(?:inguinal (?:canal|region)|groin)"),
    ("hiatal hernia", ("hiat", "diaphragmatic", "esophageal"),
     r"para-?o?esophageal hernia[se]?"
     r"|(?:sliding |para-?o?esophageal )?hiat(?:al|us)(?: (?!hernia)\w+){0,3}? hernia[se]?"
     r"|diaphragmatic hernia[se]?"),
    ("vertebral fracture", ("fracture", "deformit", "wedg", "height", "collapse", "compression"),
     r"(?:compression|wedge|burst)(?: \w+)?? (?:fractures?|deformit(?:y|ies))"
     r"|vertebra(?:l|l body|l bodies|e)?(?: \w+)?? (?:fractures?|collapse|compression)"
     r"|endplate compression|wedging|wedge-shaped deformity|loss of vertebral (?:body )?height"
     r"|(?:vertebral (?:body )?|[tl]-?(?:1[0-2]|[1-9]) )height loss"
     rf"|(?:(?:(?<!dis[ck] )(?<!space )height loss|loss of (?:(?!dis[ck]|intervert)\w+ )?height) (?:of|at|in|involving)"
     rf"|compression of) {_LEVEL}"),
    ("bone metastasis", ("lytic", "sclerotic", "blastic", "metasta"),
     r"(?:osteo)?(?:lytic|sclerotic|blastic)(?: (?:and|or) (?:lytic|sclerotic|blastic))?(?: (?:bone|bony|osseous))?"
     r" (?:lesions?|metastas[ie]s|foc(?:us|i)|deposits?|destruction)"
     r"|(?:osseous|bone|bony|skeletal) metastatic (?:disease|deposits?)"
     r"|metastatic (?:bone|osseous|skeletal) (?:disease|lesions?)"),
)  # fmt: skip
DIRECT = tuple((name, gate, re.compile(rf"\b(?:{pattern})\b")) for name, gate, pattern in _DIRECT)

_LESION = {"liver": "liver lesion", "bone": "bone metastasis", "spine": "bone metastasis"}
HEADS = (
    _Head(re.compile(r"\beffusions?\b"), ("effusion",),
          {"lung": "pleural effusion", "heart": "pericardial effusion"}, "pleural effusion", strict=False),
    _Head(re.compile(r"\b(?:micro)?nodules?\b|\bnodular (?:opacit(?:y|ies)|densit(?:y|ies)|lesions?)\b"), ("nodul",),
          {"lung": "pulmonary nodule", "liver": "liver lesion"}, "pulmonary nodule"),
    _Head(re.compile(r"\bcysts?\b"), ("cyst",), {"kidney": "renal cyst", "liver": "hepatic cyst"}),
    _Head(re.compile(r"\b(?:stones?|calcul(?:us|i|uses))\b"), ("stone", "calcul"),
          {"kidney": "renal stone", "gallbladder": "gallstones"}),
    _Head(re.compile(r"\b(?:lesions?|metastas[ie]s|metastatic (?:disease|deposits?))\b"), ("lesion", "metasta"),
          {**_LESION, "lung": "pulmonary nodule"}),
    _Head(re.compile(r"\b(?:mass(?:es)?|tumou?rs?)\b"), ("mass", "tumo"),
          {**_LESION, "lung": "pulmonary nodule"}),
    _Head(re.compile(r"\bha?emangiomas?\b"), ("mangioma",), {"liver": "liver lesion"}),
    _Head(re.compile(r"\bfractures?\b"), ("fracture",), {"spine": "vertebral fracture"}),
    _Head(re.compile(r"(?<!airway )(?<!tracheal )(?<!bronchial )(?<!expiratory )(?<!dynamic )\bcollapsed?\b"
                     r"(?! of the (?:trachea|airway|(?:[\w-]+ ){0,3}bronch))"), ("collapse",),
          {"lung": "atelectasis", "spine": "vertebral fracture"}),
    _Head(re.compile(r"\baneurysm(?:s|(?:al|atic)(?: dilat(?:at)?ion)?)?\b"), ("aneurysm",),
          {"aorta": "aortic aneurysm"}),
)  # fmt: skip

# The first alternative that matches wins, so compounds stand before their parts.
_ORGAN = re.compile(
    r"\b(?:"
    r"(?P<other>(?:iliac|renal|splenic|popliteal|cerebral|femoral|carotid|pulmonary|hepatic|mesenteric) arter\w+"
    r"|thyroid|adrenal\w*|ovar\w+|pancrea\w+|splenic|spleen|breasts?|(?:urinary )?bladder|ureter\w*|ureth\w+|prosta\w+"
    r"|u[pv]j|[pv]uj|uter\w+|adnexal?|skin|soft tissues?|subcutaneous|brain|mediastin\w+|lymph\w*|nod(?:es?|al)"
    r"|colon\w*|bowel|mesenter\w+|oment\w+|peritone\w+|stomach|gastric|o?esophag\w*|umbilical|ventral|incisional|joints?|knees?|hips?"
    r"|append\w+|muscles?|psoas|parotid|(?:common )?bile ducts?|common duct|choledoch\w*|duoden\w+|vocal|orbit\w*"
    r"|testi\w+|thym(?:us|ic)|peri(?:hepatic|splenic)|(?:sub|epi)dural|cerebr\w+|cerebell\w+"
    r"|(?:temporal|frontal|parietal|occipital|pyramidal) lobes?)"
    r"|(?P<kidney>(?:intra)?renal|(?:para|peri)-?pelvic|\w*nephro\w+|kidneys?|collecting systems?|caly(?:x|ces))"
    r"|(?P<liver>liver|hepatic(?: lobes?| segments?)?|(?:caudate|quadrate|riedel'?s?) lobes?)"
    r"|(?P<gallbladder>gall ?-?bladder|biliary)"
    r"|(?P<lung>lungs?|pulmonary|pleura\w*|(?:upper|mid(?:dle)?|lower|lingular?|azygos)[- ]lobes?|lingula\w*"
    r"|hemithora\w+|intrapulmonary|parapneumonic|[rl][ulm]l)"
    r"|(?P<half>(?:right|left) lobes?)|(?P<lobe>lobes?)|(?P<pole>(?:upper|mid\w*|lower|inter) ?pol(?:es?|ar))"
    r"|(?P<segment>segments? (?:[1-8]|[iv]+)[ab]?)"
    r"|(?P<heart>pericardi\w+|heart|cardiac)"
    r"|(?P<aorta>aort\w+|thoracoabdominal)"
    r"|(?P<spine>vertebra\w*|spin(?:e|al)|[tl]-?(?:1[0-2]|[1-9])|lumbar|endplates?)"
    r"|(?P<bone>bones?|bony|osseous|skelet\w+|sacr\w+|ili(?:ac(?: bone| wing| crest)?|um)|ribs?|stern\w+|femur|femoral"
    r"|humer\w+|pelvis|scapula\w*|clavic\w+|acetabul\w+|skull)"
    r")\b"
)
_PARTS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "half": (("liver",), r"thyroid|prosta\w+|thym|parotid", ("liver", "lung", "other")),
    "lobe": (("lung", "liver"), r"thyroid|prosta\w+|thym|parotid|brain|cereb", ("lung", "liver", "other")),
    "pole": (("kidney",), r"thyroid|spleen|splenic|testi|ovar", ("kidney", "other")),
    "segment": (("liver", "lung"), r"(?!)", ("liver", "lung")),
}
"""Parts of organs → kinds that have them, a bare word meaning the first; other organs that do; headers they go by."""
_PART_OF = re.compile(r",? (?:of|in|within) (?:(?:the|an?|this|both) )?(?:[\w-]+ ){0,2}")
_ORGAN_GATE = re.compile("|".join(("cyst", "stone", "calcul", "lesion", "metasta", "mass", "tumo", "nodul", "effusion",
                                   "fracture", "aneurysm", "mangioma", "collapse")))  # fmt: skip
_PREPOSITIONS = (
    r"in|on|at|of|the|with|and|or|nor|is|are|was|were|has|have|shows?|contains?|there|no|without|but|to|from"
)
_MODIFIERS = re.compile(rf"\s*(?:(?!(?:{_PREPOSITIONS})\b)[\w./%]+[\s-]+){{0,4}}")
_JOIN = re.compile(
    r"\s*(?:,|/|and|or|nor|and/or|,\s*(?:and|or))\s*(?:the\s+)?(?:(?:left|right|bilateral|small|moderate|large|simple)\s+)?"
)
_AND = re.compile(
    r"(?:(?P<comma>, )|,? (?:and|or|&|as well as) )(?:(?:in|of|to|within) )?"
    r"(?:(?:the|both|each|left|right|bilateral) ){0,2}"
)
_ITS_VERB = re.compile(
    r"\s*(?:(?:is|are|was|were|appears?) )?(?:\w+ly )?(?:has|have|shows?|demonstrat\w+|contains?|enhances?|unremarkable"
    r"|normal|clear|intact|within)\b"
)
"""What tells that an organ behind "and" is the subject of the next clause, not one more place of the finding."""

SECTION_ORGAN = {
    "Lungs and pleura": ("lung",),
    "Heart and vessels": ("heart", "aorta"),
    "Liver and gallbladder": ("liver", "gallbladder"),
    "Spleen and pancreas": ("other",),
    "Kidneys": ("kidney",),
    "Bowel and peritoneum": ("other",),
    "Bones": ("spine", "bone"),
}


_REGION = re.compile(
    r"\b(?:(?P<other>(?:chest|abdominal|body|thoracic) walls?|axilla\w*|neck|extremit\w+|limbs?|glands?|supraclavicular"
    r"|diaphragm\w*|sinus\w*|orbits?|head|face|throat|larynx|pharynx)"
    r"|(?P<region>abdom\w*|pelvi\w+|retroperitone\w+)|(?P<lung>chest|thora\w+|airways?|trache\w+|bronch\w+))\b"
)


def header_organs(header: str, section: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Tell the organ words that an unlisted header ("Thyroid and neck", "Upper abdomen") stands for; () if none.

    "other" and "region" are no organs of a finding of ours: a nodule or lesion under them is none without its own word.
    """
    found = {start: kind for start, _, kind in find_organs(header, section)}
    found |= {match.start(): str(match.lastgroup) for match in _REGION.finditer(header)}
    return tuple(dict.fromkeys(found[start] for start in sorted(found)))


def find_spans(text: str, section: tuple[str, ...] = ()) -> list[Span]:
    """Find every finding named in one lower-case sentence, in order, without overlap.

    Args:
        text: One sentence, lower case.
        section: Organ words of the header it stands under, as in `SECTION_ORGAN`.
    """
    spans = [
        Span(match.start(), match.end(), match.start(), name)
        for name, gate, pattern in DIRECT
        if any(word in text for word in gate)
        for match in pattern.finditer(text)
    ]
    if _ORGAN_GATE.search(text):
        spans.extend(_headed(text, section, spans))
    spans.sort(key=lambda span: (span.core, -span.end))
    kept: list[Span] = []
    for span in spans:
        covered = kept and span.core < kept[-1].end
        if not covered or (span.core, span.end) == (kept[-1].core, kept[-1].end):
            kept.append(span)
    return kept


def _headed(text: str, section: tuple[str, ...], direct: list[Span]) -> list[Span]:
    organs = find_organs(text, section)
    found = [
        (match, head)
        for head in HEADS
        if any(word in text for word in head.gate)
        for match in head.pattern.finditer(text)
        if not any(d.start <= match.start() < d.end for d in direct)
    ]
    found.sort(key=lambda item: item[0].start())
    chains = [_chain(text, organs, match.start()) for match, _ in found]
    starts = [chain[0][0] if chain else match.start() for chain, (match, _) in zip(chains, found, strict=True)]
    out = []
    for index, (match, head) in enumerate(found):
        limit = min(
            [s for s in (*starts[index + 1 :], *(d.start for d in direct)) if s >= match.end()], default=len(text)
        )
        for name in _resolve(text, match, head, chains[index], organs, limit, section):
            out.append(Span(starts[index], match.end(), match.start(), name))
    return out


def find_organs(text: str, section: tuple[str, ...] = ()) -> list[tuple[int, int, str]]:
    """Find the organ words of one lower-case sentence: (start, end, kind), "other" for organs we have no finding of.

    Args:
        text: One sentence, lower case.
        section: Organ words of the header it stands under.
    """
    organs = [(m.start(), m.end(), str(m.lastgroup)) for m in _ORGAN.finditer(text)]
    part = None
    for index in range(len(organs) - 1, -1, -1):  # "lower pole of the left lobe of the thyroid": from the last
        start, end, kind = organs[index]
        joined = part is not None and _JOIN.fullmatch(text, end, organs[index + 1][0])
        part = kind if kind in _PARTS else None
        if part is not None:
            organs[index] = (start, end, organs[index + 1][2] if joined else _whole(text, organs, index, section))
    return organs


def _whole(text: str, organs: list[tuple[int, int, str]], index: int, section: tuple[str, ...]) -> str:
    """The kind of organ that a lobe, pole or segment is part of."""
    _, end, part = organs[index]
    ours, others, headers = _PARTS[part]

    def has_part(organ: tuple[int, int, str]) -> bool:
        return organ[2] in ours or (organ[2] == "other" and re.match(others, text[organ[0] :]) is not None)

    for organ in organs[index + 1 : index + 2]:
        gap = text[end : organ[0]]
        if _PART_OF.fullmatch(gap) or (has_part(organ) and _MODIFIERS.fullmatch(gap)):
            return organ[2]
    for organ in reversed(organs[:index]):
        if has_part(organ):
            return organ[2]
    return next((kind for kind in section if kind in headers), ours[0])


def _chain(text: str, organs: list[tuple[int, int, str]], start: int) -> list[tuple[int, int, str]]:
    """Organ words that stand before a head as its adjectives: "hepatic and renal" cysts."""
    chain: list[tuple[int, int, str]] = []
    for organ in reversed([o for o in organs if o[1] <= start]):
        gap = text[organ[1] : chain[0][0] if chain else start]
        if not (_MODIFIERS.fullmatch(gap) or (chain and _JOIN.fullmatch(gap))):
            break
        chain.insert(0, organ)
    return chain


def _together(text: str, behind: list[tuple[int, int, str]]) -> list[str]:
    """The kinds of the organs that a finding is said to be in: "in the liver, spleen and both kidneys"."""
    kinds = [behind[0][2]]
    pending: list[str] = []
    for (_, end, _), (start, stop, kind) in pairwise(behind):
        joined = _AND.fullmatch(text, end, start)
        if joined is None or _ITS_VERB.match(text, stop):
            break
        pending.append(kind)
        if not joined["comma"]:
            kinds, pending = kinds + pending, []
    return kinds


def _resolve(
    text: str,
    match: re.Match[str],
    head: _Head,
    chain: list[tuple[int, int, str]],
    organs: list[tuple[int, int, str]],
    limit: int,
    section: tuple[str, ...],
) -> list[str]:
    if chain:
        names = [head.organs[kind] for _, _, kind in chain if kind in head.organs]
        if names:
            return list(dict.fromkeys(names))
        if any(kind == "other" for _, _, kind in chain) or head.strict:
            return []
    behind = [organ for organ in organs if match.end() <= organ[0] < limit]
    if behind and (behind[0][2] in head.organs or head.strict):
        names = [head.organs[kind] for kind in _together(text, behind) if kind in head.organs]
        return list(dict.fromkeys(names))
    before = next((kind for _, end, kind in reversed(organs) if end <= match.start() and kind in head.organs), None)
    nearest = next((kind for _, end, kind in reversed(organs) if end <= match.start()), None)
    if before is not None and (before == nearest or before in section):
        return [head.organs[before]]
    if nearest == "other" and head.strict and not section:
        return []
    for kind in section:
        if kind in head.organs:
            return [head.organs[kind]]
    if section and "lung" not in section and head.strict:
        return []
    return [head.default] if head.default else []
