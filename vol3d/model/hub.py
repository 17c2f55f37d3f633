"""Loading Hugging Face models by Hub name or folder, with errors that say the way out. Code that lies beside a model's
weights is never run, and nobody is asked whether it should be."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_causal_lm(
    name: str,
    *,
    dtype: str = "float32",
    attn_implementation: str = "sdpa",
    gguf_file: str | None = None,
    quantization: str | None = None,
    adapted: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a Hub name or folder; of a model that also sees images the language model alone.

    Args:
        quantization: "4bit" for NF4 by bitsandbytes. adapted: LoRA comes on top, without which 4 bits cannot learn.

    Raises:
        ValueError: a name that cannot be loaded (gated, absent, unreachable), weights that lack some of the model's, an
            adapter without its base's weights, or 4 bits without a GPU or adapters.
        ImportError: gguf or bitsandbytes is missing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(name)
    extra: dict[str, Any] = {}
    if gguf_file is not None:
        if not (folder / gguf_file).is_file():
            raise ValueError(f"{folder / gguf_file}: no such GGUF file; `name` is the folder that holds it")
        if importlib.util.find_spec("gguf") is None:
            raise ImportError(f"{gguf_file} needs the package gguf: pip install 'vol3d[gguf]'")
        extra["gguf_file"] = gguf_file
    config = None if quantization is None else four_bit(quantization, dtype, adapted=adapted)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **extra)
        if gguf_file is not None:
            from transformers import GgufConfig

            # Without this the dense weights stay flagged as quantised and cannot be saved.
            config = GgufConfig(dequantize=True)
        if config is not None:
            extra["quantization_config"] = config
        model, found = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            trust_remote_code=False,
            output_loading_info=True,
            **extra,
        )
        own = dict(model.named_parameters())
        if missing := sorted(own.keys() & found["missing_keys"]):
            raise ValueError(f"its weights lack {len(missing)} of {len(own)} tensors {missing[:3]}")
    except (OSError, ValueError) as error:
        raise ValueError(_why("language model", name, error, _LANGUAGE)) from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"language model {name!r} is an adapter beside its base's weights: add it to them, "
            f"peft.AutoPeftModelForCausalLM.from_pretrained({name!r}).merge_and_unload().save_pretrained(FOLDER), and "
            "give FOLDER, the tokenizer in it"
        )
    return language_part(model), tokenizer


def language_part(model: PreTrainedModel) -> PreTrainedModel:
    """Of a model that also sees or hears (Gemma 3, MedGemma) the causal language model, its weights shared; any other
    as it is. Here volumes come as embeddings, and what else it has would be adapted, counted and saved for nothing.
    """
    from transformers import AutoModelForCausalLM

    config = model.config.get_text_config(decoder=True)
    if config is model.config:
        return model
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    config.tie_word_embeddings = head.weight is table.weight
    with torch.device("meta"):
        alone = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    setattr(alone, alone.base_model_prefix, model.get_decoder())
    alone.set_output_embeddings(head)
    alone.generation_config = model.generation_config
    for name in ("hf_quantizer", "quantization_method", "is_quantized", "is_loaded_in_4bit"):
        if hasattr(model, name):
            setattr(alone, name, getattr(model, name))
    return alone


def causal_lm_without_weights(name: str, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a Hub name or folder with weights as they come, and its tokenizer: only its config is read.

    Raises:
        ValueError: a name that cannot be loaded.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(_why("language model", name, error, _LANGUAGE)) from error
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    return language_part(model), tokenizer


def load_text_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a Hub name or folder that reads texts, in float32.

    A BERT published under a name and with classes of its own (CXR-BERT) is read as the BERT that it is.

    Raises:
        ValueError: a name that cannot be loaded, or weights that are not all of a BERT's.
    """
    from transformers import CONFIG_MAPPING, AutoModel, AutoTokenizer, PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
        kind = config.get("model_type", "")
        if kind.endswith("bert") and kind not in CONFIG_MAPPING:
            return _as_bert(name, config)
        model = AutoModel.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
        return model, AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(_why("text encoder", name, error, _TEXT)) from error


def _as_bert(name: str, config: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    own = BertConfig(**{key: value for key, value in config.items() if key not in ("model_type", "auto_map")})
    model, found = BertModel.from_pretrained(name, config=own, dtype=torch.float32, output_loading_info=True)
    # Checkpoints of masked language models have no pooler; only the last hidden states are read.
    if missing := sorted(key for key in found["missing_keys"] if not key.startswith("pooler.")):
        raise ValueError(f"as a BERT it lacks {len(missing)} of {len(model.state_dict())} tensors {missing[:3]}")
    return model, BertTokenizerFast.from_pretrained(name)


_LANGUAGE = (
    "give a folder with config.json and weights, a Hub name that this machine can reach and you have access to, or use "
    "vol3d.model.language.Scratch"
)
_TEXT = (
    'give a folder with config.json, weights and tokenizer, a Hub name this machine can reach, "language" for the '
    'model\'s own, or "scratch"'
)


def _why(part: str, name: str, error: Exception, way: str) -> str:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if any(word in str(error).lower() for word in ("gated", "401 client", "403 client", "restricted")):
        return (
            f"{part} {name!r} is gated and this machine has no access to it ({first}): accept its licence at "
            f"https://huggingface.co/{name} and log in with `hf auth login`, or give a folder that holds it"
        )
    if "trust_remote_code" in str(error):
        return (
            f"{part} {name!r} needs Python code that lies beside its weights (auto_map in config.json), which vol3d "
            "does not run: name a model of an architecture that transformers has itself"
        )
    return f"{part} {name!r} could not be loaded ({first}): {way}"


def four_bit(quantization: str, dtype: str, *, adapted: bool) -> Any:
    """transformers' settings for NF4 with double quantisation (QLoRA, arXiv:2305.14314).

    Raises:
        ValueError: another word than "4bit", no LoRA on top, or no GPU. ImportError: no bitsandbytes.
    """
    if quantization != "4bit":
        raise ValueError(f"quantization {quantization!r}: known is '4bit'")
    if not adapted:
        raise ValueError("4-bit weights cannot learn: give lora as well, or leave quantization out")
    if not torch.cuda.is_available():
        raise ValueError(
            "quantization '4bit' needs a CUDA GPU, this machine has 0: leave it out and use dtype 'bfloat16' with lora"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("quantization '4bit' needs the package bitsandbytes: pip install 'vol3d[qlora]'")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "float32" else getattr(torch, dtype),
    )
