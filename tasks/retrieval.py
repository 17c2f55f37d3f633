"""Retrieval: a volume and the text about it become vectors that point the same way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vol3d.data.batch import Batch
from vol3d.data.study import Study
from vol3d.model.cross_entropy import is_sharded, most_of_ranks
from vol3d.model.interfaces import Evidence, Features, Task, TaskOutput
from vol3d.model.pooling import QueryPool
from vol3d.model.text_encoder import language_text, language_volume, text_encoder, unit
from vol3d.model.volume_lm import VolumeLM
from vol3d.text.matching import matched, says
from vol3d.text.sections import MERLIN_ORGANS
from vol3d.training.contrastive import any_rank, at_most, in_chunks, infonce, siglip

OTHER_POOLS = (32, 64, 128, 500, 1000, 2000)
"""Merlin's and M3D-Bench's pools, scored beside those of 100."""


class Retrieval(Task):
    """Volume ↔ text by contrast: each volume's vector is nearest to its own text's among all of the batch.

    `embed_volume` and `embed_text` give the unit vectors that `vol3d embed` and `vol3d search` work with.

    Args:
        model: the shared model.
        text: what is matched: the report, its findings, its impression, or "sections": each organ's section for
            itself (by `vol3d.text.sections`), the volume's vector being compared within one organ at a time.
        loss: "infonce" or "siglip".
        text_encoder: a Hugging Face name or folder; "scratch" or {"embed_dim": …, "depth": …} for a small one that
            learns with the task; "language": the model's own language model reads the text, and the volume behind
            `instruction`, and its last hidden state is the vector.
        equal: when two texts say the same and are no negatives of each other: "text" for the same words, "findings"
            for the same findings in every detail (`vol3d.text.parser`; what it cannot read does not count).
        embed_dim: numbers of a vector. queries: how many things are looked for in a volume.
        chunk: texts whose activations are held at once, and rows of the similarity table; None: all.
        instruction: with `<volume>`, for text_encoder="language".

    Raises:
        ValueError: text_encoder="language" and the model has none.

    Source: CLIP (arXiv:2103.00020), SigLIP (arXiv:2303.15343); sections as Merlin (arXiv:2406.06512) splits its
    reports; equal texts as fVLM (arXiv:2501.14548) corrects them; the language model as in VLM2Vec
    (arXiv:2410.05160). The volume is pooled by learned queries, which none of them does.
    """

    kind = "retrieval"
    least = 2

    def __init__(
        self,
        model: VolumeLM,
        *,
        text: Literal["report", "findings", "impression", "sections"] = "report",
        loss: Literal["infonce", "siglip"] = "infonce",
        text_encoder: str | dict[str, Any] = "scratch",
        equal: Literal["text", "findings"] = "text",
        embed_dim: int = 256,
        queries: int = 32,
        chunk: int | None = None,
        instruction: str = "<volume>\nSummarise this CT in one word:",
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.text, self.objective, self.equal, self.weight = text, loss, equal, weight
        self.embed_dim, self.chunk, self.instruction = embed_dim, chunk, instruction
        self.reads_with_language = text_encoder == "language"
        if self.reads_with_language:
            if model.language is None:
                raise ValueError('Retrieval with text_encoder="language" needs a model with a language model')
            self.uses = frozenset({"visual"})
            self.head = nn.Linear(model.language.embed_dim, embed_dim)
        else:
            self._build_towers(model, text_encoder, queries)
        temperature, bias = (0.07, 0.0) if loss == "infonce" else (0.1, -10.0)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.bias = nn.Parameter(torch.tensor(bias), requires_grad=loss == "siglip")

    def _build_towers(self, model: VolumeLM, source: str | dict[str, Any], queries: int) -> None:
        self.texts = text_encoder(source)
        # What a saved model is built from again must need neither disk nor network.
        self.init_args["text_encoder"] = self.texts.spec
        self.text_head = nn.Linear(self.texts.embed_dim, self.embed_dim)
        width = max(16, 2 * self.embed_dim // queries)
        self.pool = QueryPool(model.encoder.embed_dim, queries=queries, width=width)
        self.head = nn.Linear(queries * width, self.embed_dim)

    # --- vectors --------------------------------------------------------------------------------------------

    def embed_volume(self, model: VolumeLM, features: Features) -> Tensor:
        """Unit vectors of volumes (batch, embed_dim)."""
        if self.reads_with_language:
            return self._from_language(language_volume(model, features, self.instruction))
        return unit(self.head(self.pool(features.tokens).flatten(1)))

    def embed_text(self, model: VolumeLM, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts (texts, embed_dim)."""
        texts = list(texts)
        if self.reads_with_language:
            return self._from_language(in_chunks(lambda part: language_text(model, part), texts, self.chunk))
        return unit(self.text_head(in_chunks(self.texts, texts, self.chunk)))

    def _from_language(self, hidden: Tensor) -> Tensor:
        """Unit vectors from hidden states, which a language model in bfloat16 gives in bfloat16."""
        return unit(self.head(hidden.to(self.head.weight.dtype)))

    @property
    def scale(self) -> Tensor:
        """1 / temperature, 100 at most."""
        return at_most(self.log_scale, math.log(100)).exp()

    # --- learning -------------------------------------------------------------------------------------------

    def loss(self, model: VolumeLM, features: Features, batch: Batch) -> TaskOutput:
        texts = [self.of(study) for study in batch.studies]
        if not any_rank(sum(map(bool, texts)), features.tokens.device):
            return TaskOutput(None, 0)
        volume = self.embed_volume(model, features)
        return self.contrast_parts(model, [volume] * len(self.parts), texts)

    def contrast_parts(
        self, model: VolumeLM, volumes: Sequence[Tensor], texts: Sequence[Mapping[str, str]]
    ) -> TaskOutput:
        """The mean over the parts of the loss within each.

        Args:
            volumes: of each part, the studies' unit vectors (studies, embed_dim). texts: of each study, by part.
        """
        said = list(dict.fromkeys(text for parts in texts for text in parts.values()))
        if not any_rank(len(said), volumes[0].device):
            return TaskOutput(None, 0)
        number = {text: place for place, text in enumerate(said)}
        read = self._in_step(model, said, volumes[0].device)
        vectors = self.embed_text(model, read)[: len(said)] if read else volumes[0][:0]
        losses = []
        for part, volume in zip(self.parts, volumes, strict=True):
            rows = [row for row, parts in enumerate(texts) if part in parts]
            if any_rank(len(rows), volume.device):
                own = [texts[row][part] for row in rows]
                losses.append(self.contrast(volume[rows], vectors[[number[text] for text in own]], own))
        count = sum(bool(parts) for parts in texts)
        return TaskOutput(torch.stack(losses).mean(), count, {"scale": float(self.scale.detach())})

    def _in_step(self, model: VolumeLM, texts: list[str], device: torch.device) -> list[str]:
        """The texts, filled up where weights are divided: each chunk gathers them, so every rank reads as many."""
        readers = model.parameters() if self.reads_with_language else self.parameters()
        if not any(is_sharded(parameter) for parameter in readers):
            return texts
        most = most_of_ranks(len(texts) if self.chunk else min(1, len(texts)), device)
        return texts + [texts[0] if texts else "none"] * (most - len(texts))

    def contrast(self, volume: Tensor, vectors: Tensor, texts: Sequence[str]) -> Tensor:
        """The loss between the vectors of volumes and of their texts."""
        same = [says(text, self.equal) for text in texts]
        if self.objective == "infonce":
            return infonce(volume, vectors, self.scale, same=same, chunk=self.chunk)
        return siglip(volume, vectors, self.scale, self.bias, same=same, chunk=self.chunk)

    @property
    def parts(self) -> tuple[str, ...]:
        """What texts are compared within; the same on every rank."""
        return MERLIN_ORGANS if self.text == "sections" else (self.text,)

    def of(self, study: Study) -> dict[str, str]:
        """The texts of `study` that are matched, by part; empty when it has none."""
        return matched(study, self.text)

    def learns(self, study: Study) -> bool:
        return bool(self.of(study))

    # --- judging --------------------------------------------------------------------------------------------

    def predict(self, model: VolumeLM, features: Features, batch: Batch) -> list[dict[str, Any]]:
        volumes = self.embed_volume(model, features)
        rows = []
        for vector, study in zip(volumes, batch.studies, strict=True):
            parts = list(self.of(study).values())
            # With sections a volume is compared with their mean, as it is with each of them in training.
            text = unit(self.embed_text(model, parts).mean(dim=0)).tolist() if parts else None
            rows.append({"retrieval": {"volume": _rounded(vector.tolist()), "text": text and _rounded(text)}})
        return rows

    def reads(self, study: Study) -> dict[str, str]:
        """The texts whose vectors stand beside the volume's."""
        return self.of(study)

    def score(self, evidence: Evidence) -> dict[str, dict[str, Any]]:
        import numpy as np

        from vol3d.evaluation.metrics.baselines import blind
        from vol3d.evaluation.metrics.retrieval import score_retrieval

        everyone = [*evidence.studies, *evidence.others]
        vectors = {study.study: evidence.predictions[study.study]["retrieval"] for study in everyone}
        studies = [study for study in everyone if vectors[study.study]["text"] is not None]
        names = {study.study for study in evidence.studies}
        asked = np.array([study.study in names for study in studies], dtype=bool)
        if not asked.any():
            return {}
        patients = [study.patient for study in studies]
        volumes, texts = (np.array([vectors[study.study][side] for study in studies]) for side in ("volume", "text"))
        words = ["\n".join(self.of(study).values()) for study in studies]
        options = {
            "reports": words,
            "distinct": [says(text, self.equal) for text in words],
            "other_pools": OTHER_POOLS,
            "asked": asked,
            "replicates": evidence.replicates,
            "seed": evidence.seed,
        }
        scores = score_retrieval(volumes, texts, patients, **options)
        try:
            dealt = np.array(blind(list(volumes), patients, evidence.seed))
        except ValueError as error:
            blindly: dict[str, Any] = {"recall@1": None, "note": str(error)}
        else:
            told = score_retrieval(dealt, texts, patients, **{**options, "replicates": 2, "other_pools": ()})
            blindly = {name: value["value"] for name, value in told.items() if name.startswith(("recall", "mrr"))}
        scores["baselines"] = scores.get("baselines", {}) | {"blind": blindly}
        return {"retrieval": scores | {"equal": self.equal}}


def _rounded(vector: Sequence[float]) -> list[float]:
    return [round(value, 6) for value in vector]
