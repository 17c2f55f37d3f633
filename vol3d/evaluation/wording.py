"""Scores of generated texts that need another library or another model: METEOR, BERTScore, RadEval, an LLM as judge.

None is on by default, and none fetches anything: models and data are folders of yours.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vol3d.evaluation.intervals import clustered_bootstrap, undefined

Score = Callable[[Sequence[str], Sequence[str]], Sequence[float | None]]
"""(truths, outputs) → one number a study, None where it has none."""

DEFINITIONS = {
    "meteor": "NLTK's METEOR (exact, stem and WordNet synonym matches; α 0.9, β 3, γ 0.5), mean over reports",
    "meteor_exact_stem": "the same without synonyms, which needs no data: a lower bound of METEOR",
    "bertscore_f1": "BERTScore F1 (Zhang et al. 2020, arXiv:1904.09675) of the local model named beside it, "
    "not rescaled",
    "judge": "share of the true report's clinical statements that a language model finds in the output, by its own "
    "judgement on a scale of 0 to 10",
}
JUDGE_VERSION = "vol3d-judge-1"
JUDGE_PROMPT = """You compare two radiology reports of the same CT. Judge only clinical content: findings, their side, \
size and severity, and what is said to be absent. Ignore style.

REFERENCE REPORT:
{truth}

CANDIDATE REPORT:
{output}

How much of the reference's clinical content is stated correctly in the candidate, with nothing invented? \
Answer with one whole number from 0 (nothing) to 10 (all of it) and no other word.
Score:"""
_WORD = re.compile(r"[a-z0-9]+")
_NUMBER = re.compile(r"(?<![\d.])(10|\d)(?:\s*/\s*10)?(?![\d.])")


def wording(
    *,
    meteor: str | None = None,
    bertscore: str | None = None,
    radeval: bool = False,
    judge: str | Callable[[str], str] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> Callable[[Sequence[str], Sequence[str], Sequence[Hashable]], dict[str, Any]] | None:
    """The chosen scores as one function of truths, outputs and patients; None when nothing is chosen.

    Args:
        meteor: folder with NLTK's data (`corpora/wordnet.zip` or `corpora/wordnet`); "" matches words and stems only.
        bertscore: folder of a transformers encoder. judge: folder of a chat model, or prompt → answer.
        radeval: RadGraph-F1, RaTEScore, GREEN and CT label F1 by RadEval (values without interval).

    Raises:
        ImportError: the library is not installed (the extra is named).
        ValueError: a folder that holds no such data.
    """
    scores: dict[str, Score] = {}
    if meteor is not None:
        scores["meteor" if meteor else "meteor_exact_stem"] = meteor_score(meteor or None)
    if bertscore is not None:
        scores["bertscore_f1"] = bert_score(bertscore)
    about: dict[str, Any] = {"bertscore_model": Path(bertscore).name} if bertscore else {}
    if judge is not None:
        scores["judge"] = judge_score(_chat(judge))
        digest = hashlib.sha256(JUDGE_PROMPT.encode()).hexdigest()[:16]
        name = judge if isinstance(judge, str) else getattr(judge, "__name__", type(judge).__name__)
        about["judge_by"] = f"{name}, prompt {JUDGE_VERSION} (sha256 {digest})"
        about["judge_prompt"] = JUDGE_PROMPT
    if radeval:
        _radeval()
    if not scores and not radeval:
        return None

    def scored(truths: Sequence[str], outputs: Sequence[str], patients: Sequence[Hashable]) -> dict[str, Any]:
        result = {
            name: mean_of(score(truths, outputs), patients, replicates=replicates, seed=seed)
            for name, score in scores.items()
        }
        if radeval:
            result |= radeval_scores(truths, outputs)
        return result | about

    return scored


def mean_of(
    values: Sequence[float | None], patients: Sequence[Hashable], *, replicates: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """The mean over studies that have a value, with its interval, and a note of how many have none."""
    known = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    there = np.isfinite(known)
    if not there.any():
        return undefined(f"none of {len(known)} outputs could be scored")
    filled = np.where(there, known, 0.0)

    def mean(weights: np.ndarray) -> np.ndarray:
        counted = weights @ there.astype(np.float64)
        return np.divide(weights @ filled, counted, out=np.full(len(weights), np.nan), where=counted > 0)

    estimate = clustered_bootstrap(mean, patients, replicates=replicates, seed=seed)[0]
    left = int((~there).sum())
    return estimate | ({"note": f"{left} of {len(known)} outputs could not be scored"} if left else {})


class _NoSynonyms:
    """Stands where NLTK's WordNet would: knows no word."""

    def synsets(self, word: str) -> list[Any]:
        return []


def meteor_score(data: str | None = None) -> Score:
    """METEOR by NLTK; without its data folder, of exact and stem matches only.

    Words are a–z and 0–9 in lower case. (HF's `evaluate`, which M3D-Bench calls, splits by NLTK's tokeniser: equal on
    plain sentences, different at hyphens.)
    """
    try:
        from nltk.corpus import wordnet
        from nltk.translate.meteor_score import meteor_score as of_words
    except ImportError as error:
        raise ImportError("METEOR needs NLTK: pip install 'vol3d[text-metrics]'") from error
    words_known: Any = _NoSynonyms()
    if data is not None:
        import nltk

        nltk.data.path.insert(0, str(data))
        try:
            wordnet.ensure_loaded()
        except LookupError as error:
            raise ValueError(
                f"{data} has no corpora/wordnet: put NLTK's wordnet.zip there, or give --meteor without a folder for "
                "exact and stem matches only"
            ) from error
        words_known = wordnet

    def score(truths: Sequence[str], outputs: Sequence[str]) -> list[float | None]:
        pairs = [(_WORD.findall(t.lower()), _WORD.findall(o.lower())) for t, o in zip(truths, outputs, strict=True)]
        return [float(of_words([truth], said, wordnet=words_known)) if said else 0.0 for truth, said in pairs]

    return score


def bert_score(folder: str) -> Score:
    """BERTScore F1 by torchmetrics with the encoder in `folder`; an empty output scores 0."""
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: give the folder of a transformers encoder with its tokenizer")

    def score(truths: Sequence[str], outputs: Sequence[str]) -> list[float | None]:
        from torchmetrics.functional.text.bert import bert_score as of_texts

        said = [place for place, output in enumerate(outputs) if output.strip()]
        values: list[float | None] = [0.0] * len(outputs)
        if said:
            pair = [outputs[place] for place in said], [truths[place] for place in said]
            found = of_texts(*pair, model_name_or_path=str(folder), truncation=True)["f1"]
            for place, value in zip(said, np.atleast_1d(np.asarray(found)).tolist(), strict=True):
                values[place] = float(value)
        return values

    return score


def judge_score(chat: Callable[[str], str]) -> Score:
    """A language model's mark of each output, 0 to 1; None where its answer has no number of 0 to 10."""

    def mark(truth: str, output: str) -> float | None:
        if not output.strip():
            return 0.0
        found = _NUMBER.search(chat(JUDGE_PROMPT.format(truth=truth, output=output)))
        return int(found.group(1)) / 10 if found else None

    return lambda truths, outputs: [mark(*pair) for pair in zip(truths, outputs, strict=True)]


def _chat(judge: str | Callable[[str], str]) -> Callable[[str], str]:
    if not isinstance(judge, str):
        return judge
    from vol3d.model.local_chat import LocalChat

    return LocalChat(judge)


def _radeval() -> Any:
    try:
        from RadEval import RadEval
    except ImportError as error:
        raise ImportError(
            "RadGraph-F1, RaTEScore, GREEN and CT label F1 need RadEval: pip install 'vol3d[radeval]'"
        ) from error
    return RadEval


def radeval_scores(truths: Sequence[str], outputs: Sequence[str]) -> dict[str, Any]:
    """What RadEval says of the texts, each number as a value without an interval, named `radeval_…`."""
    evaluator = _radeval()(do_radgraph=True, do_ratescore=True, do_f1radbert_ct=True)
    found = evaluator(refs=list(truths), hyps=list(outputs))
    return {
        f"radeval_{name}": {"value": float(value), "low": None, "high": None, "note": "RadEval's, no interval"}
        for name, value in found.items()
        if isinstance(value, (int, float))
    }
