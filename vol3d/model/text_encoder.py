"""Text towers: sentences → one vector a text, by a small transformer from scratch or any Hugging Face model."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vol3d.model.hub import load_text_model
from vol3d.model.interfaces import Features, Part
from vol3d.model.language import LanguageModel, pad
from vol3d.model.tokens import token_positions
from vol3d.model.volume_lm import VolumeLM
from vol3d.model.words import sentences, word_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SPECIAL = ("pad_token", "unk_token", "bos_token", "eos_token", "cls_token", "sep_token", "mask_token")


class TextEncoder(Part, ABC):
    """Texts → (texts, embed_dim), before any normalisation.

    `spec` is what `text_encoder` needs to build it again without disk or network; a tokenizer travels with the weights.
    """

    embed_dim: int

    @property
    @abstractmethod
    def spec(self) -> dict[str, Any]: ...

    @abstractmethod
    def forward(self, texts: Sequence[str]) -> Tensor: ...


def text_encoder(source: str | Mapping[str, Any]) -> TextEncoder:
    """The text tower that `source` names.

    Args:
        source: "scratch"; the settings of `SentenceEncoder` ({"embed_dim": 128, "depth": 2}); a Hugging Face name or
            folder, whose weights and tokenizer are read now; or the `spec` of an encoder that was built before.

    Raises:
        ValueError: a name or folder that cannot be loaded.
    """
    if source == "scratch":
        return SentenceEncoder()
    if isinstance(source, str):
        return PretrainedText.load(source)
    if "config" in source:
        return PretrainedText(**source)
    return SentenceEncoder(**source)


class SentenceEncoder(TextEncoder):
    """A small transformer within each sentence, and a gated sum over the sentences of a text.

    A report is a list of statements whose order says little, so each sentence is read by itself (and once, however
    many texts of a batch hold it), weighs as much as its gate says, and the text is their sum. Words are hashed into a
    table that is learnt with the task: nothing is downloaded and no vocabulary has to be built first.

    Args:
        embed_dim: width. depth, num_heads: of the transformer. buckets: rows of the word table.
        max_words: words of a sentence that are read; in Chinese, Japanese and Thai a letter is a word.

    Shape:
        texts → (texts, embed_dim)

    Source: hashed words as in fastText (arXiv:1607.04606); sentence-wise alignment of reports as in MGCA
    (arXiv:2210.06044), here inside the text tower.
    """

    def __init__(
        self, *, embed_dim: int = 128, depth: int = 2, num_heads: int = 4, buckets: int = 4096, max_words: int = 64
    ) -> None:
        super().__init__()
        self.embed_dim, self.buckets, self.max_words = embed_dim, buckets, max_words
        self.words = nn.Embedding(buckets + 1, embed_dim, padding_idx=0)
        self.places = nn.Embedding(max_words, embed_dim)
        nn.init.normal_(self.words.weight, std=0.3)
        nn.init.normal_(self.places.weight, std=0.1)
        layer = nn.TransformerEncoderLayer(
            embed_dim, num_heads, 2 * embed_dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(embed_dim), enable_nested_tensor=False)
        self.value, self.gate = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, 1)

    @property
    def spec(self) -> dict[str, Any]:
        return dict(self.init_args)

    def forward(self, texts: Sequence[str]) -> Tensor:
        split = [sentences(text) for text in texts]
        known = {sentence: number for number, sentence in enumerate(dict.fromkeys(s for row in split for s in row))}
        vectors = self.sentences(list(known))
        row = torch.tensor([r for r, row in enumerate(split) for _ in row], device=vectors.device)
        place = torch.tensor([known[s] for row in split for s in row], device=vectors.device)
        out = vectors.new_zeros(len(texts), self.embed_dim)
        return out.index_add(0, row, vectors[place])

    def sentences(self, sentences: Sequence[str]) -> Tensor:
        """One gated vector a sentence."""
        rows = [word_ids(sentence, self.buckets)[: self.max_words] for sentence in sentences]
        device = self.words.weight.device
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
        ids = ids.to(device)
        absent = ids == 0
        hidden = self.words(ids) + self.places.weight[: ids.shape[1]]
        hidden = self.layers(hidden, src_key_padding_mask=absent)
        kept = (~absent).unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * kept).sum(1) / kept.sum(1)
        return self.value(mean) * self.gate(mean).sigmoid()


class PretrainedText(TextEncoder):
    """A Hugging Face model's last hidden states, averaged over the tokens of a text.

    The constructor builds the architecture from its configuration, with random weights and without a tokenizer;
    `load` reads both from the Hub or a folder, and `load_state_dict` from a saved model or a checkpoint, where the
    tokenizer lies among the weights. The weights are float32 whatever they are stored in: steps of a usual learning
    rate are lost in half precision, and without autocast the head behind it takes float32.

    Args:
        config: a transformers configuration as a dictionary.
        max_length: tokens of a text that are read.

    Shape:
        texts → (texts, hidden size)

    Source: mean pooling as in Sentence-BERT (arXiv:1908.10084).
    """

    def __init__(self, config: Mapping[str, Any], *, max_length: int = 512) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        settings = dict(config)
        built = AutoConfig.for_model(settings.pop("model_type"), **settings)
        self.model: PreTrainedModel = AutoModel.from_config(built, dtype=torch.float32, trust_remote_code=False)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.max_length = min(max_length, _positions(built))
        self.embed_dim = self.model.get_input_embeddings().embedding_dim

    @classmethod
    def load(cls, name: str, *, max_length: int = 512) -> PretrainedText:
        """Weights and tokenizer of a Hugging Face name or folder.

        Raises:
            ValueError: it cannot be loaded, or its tokenizer has no fast form.
        """
        model, tokenizer = load_text_model(name)
        if not tokenizer.is_fast:
            raise ValueError(f"text encoder {name!r} has no fast tokenizer: save it with one (tokenizer.json)")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        config = _plain(model.config.to_dict())
        config.pop("_name_or_path", None)
        encoder = cls(config, max_length=max_length)
        encoder.model.load_state_dict(model.state_dict())
        encoder.tokenizer = tokenizer
        return encoder

    @property
    def spec(self) -> dict[str, Any]:
        return {"config": self.init_args["config"], "max_length": self.max_length}

    def forward(self, texts: Sequence[str]) -> Tensor:
        if self.tokenizer is None:
            raise ValueError(
                "this text encoder has no tokenizer yet: build it with PretrainedText.load, or load weights"
            )
        inputs = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        ids, attention = (inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        hidden = self.model(input_ids=ids, attention_mask=attention).last_hidden_state
        kept = attention.unsqueeze(-1).to(hidden.dtype)
        return (hidden * kept).sum(1) / kept.sum(1).clamp_min(1)

    def get_extra_state(self) -> Tensor:
        """The tokenizer as bytes, so that it is saved wherever the weights are."""
        if self.tokenizer is None:
            return torch.zeros(0, dtype=torch.uint8)
        special = {name: str(value) for name in _SPECIAL if (value := getattr(self.tokenizer, name, None)) is not None}
        state = {"tokenizer": self.tokenizer.backend_tokenizer.to_str(), "special": special}
        return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        if not len(state):
            return
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        saved = json.loads(bytes(state.cpu().numpy()).decode())
        tokenizer = Tokenizer.from_str(saved["tokenizer"])
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **saved["special"])


def _positions(config: Any) -> int:
    # RoBERTa's position table begins behind the padding index.
    positions = getattr(config, "max_position_embeddings", None) or 1 << 20
    return positions - 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else positions


def _plain(value: Any) -> Any:
    """What YAML can hold: no dtypes, tuples or keys that are numbers read back as text."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


# --- the language model as a tower --------------------------------------------------------------------------


def language_volume(model: VolumeLM, features: Features, instruction: str) -> Tensor:
    """The language model's last hidden state behind a volume and an instruction (batch, language width).

    Source: VLM2Vec (arXiv:2410.05160).
    """
    return model.last_hidden(features, [instruction] * len(features))


def language_text(model: VolumeLM, texts: Sequence[str]) -> Tensor:
    """The language model's last hidden state behind each text and its end of sequence (texts, language width)."""
    language = _language(model)
    room = language.max_length - 1
    rows = [[*language.encode(text)[:room], language.tokenizer.eos_token_id] for text in texts]
    ids, attention = pad(rows, language.tokenizer.pad_token_id, left=True, device=model.device)
    embeds = language.causal_lm.get_input_embeddings()(ids)
    return language.hidden(embeds, attention, token_positions(attention))[:, -1]


def _language(model: VolumeLM) -> LanguageModel:
    if model.language is None:
        raise ValueError("this model has no language model to read texts with: name a text_encoder")
    return model.language


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1, in float32."""
    return F.normalize(vectors.float(), dim=-1)
