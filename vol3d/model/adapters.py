"""What of a language model learns: LoRA, DoRA, a prefix, frozen parts, and the count of it all."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedConfig, PreTrainedModel

    from vol3d.model.language import LanguageModel

POLICIES = ("all", "none", "adapters", "lora", "prefix", "embeddings", "norms", "biases", "head", "tokens", "last:N")


@dataclass(frozen=True)
class Lora:
    """LoRA adapters (Hu et al. 2021, arXiv:2106.09685) by peft.

    Args:
        rank: r. alpha: scaling numerator (the update is scaled by alpha / rank). dropout: on the adapter's input.
        targets: names of the linear layers, or "all-linear".
        dora: learn each column's length apart from its direction (DoRA, Liu et al. 2024, arXiv:2402.09353).
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"
    dora: bool = False


@dataclass(frozen=True)
class Prefix:
    """Prefix tuning (Li & Liang 2021, arXiv:2101.00190): learned keys and values before the first token of each layer.

    Differs: no reparametrising MLP. Gradient checkpointing drops the cache the prefix lives in, so it is refused.

    Args:
        num_tokens: positions the prefix takes from the model's length.
    """

    num_tokens: int = 16


def with_lora(model: PreTrainedModel, lora: Lora) -> nn.Module:
    """The model in peft's wrapper, its base frozen.

    Raises:
        ValueError: `targets` takes in the embedding table.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import Linear

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config)
    if hasattr(model.get_input_embeddings(), "base_layer"):
        raise ValueError(
            f"lora.targets {lora.targets!r} takes in the embedding table, which is no linear layer: leave it out; the "
            "table itself learns with train='lora+embeddings'"
        )
    for module in wrapped.modules():
        if type(module) is Linear and not lora.dora:
            module.forward = MethodType(_scaled_early, module)
    return wrapped


def _scaled_early(self: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """peft's forward of one adapter, but the scale meets `rank` numbers a token instead of the layer's whole width; and
    under autocast, which casts by itself, bfloat16 goes in as it is: q, k and v hold one tensor, not three copies."""
    if args or options or self.disable_adapters or self.merged or len(self.active_adapters) != 1:
        return type(self).forward(self, x, *args, **options)
    name, result = self.active_adapters[0], self.base_layer(x)
    down, up = self.lora_A[name], self.lora_B[name]
    if not torch.is_autocast_enabled(x.device.type):
        x = self._cast_input_dtype(x, down.weight.dtype)
    return (result + up(down(self.lora_dropout[name](x)) * self.scaling[name])).to(result.dtype)


class PrefixStates(nn.Module):
    """The learned keys and values of a `Prefix`.

    Shape:
        states (layers, 2, key-value heads, num_tokens, head_dim).
    """

    def __init__(self, prefix: Prefix, config: PreTrainedConfig) -> None:
        super().__init__()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.num_tokens, self.config = prefix.num_tokens, config
        self.states = nn.Parameter(torch.randn(config.num_hidden_layers, 2, heads, prefix.num_tokens, width) * 0.02)

    def cache(self, batch: int, dtype: torch.dtype) -> Cache:
        """A cache that holds the prefix for each row."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.config)
        for layer, states in enumerate(self.states.to(dtype)):
            keys, values = states.unsqueeze(1).expand(-1, batch, -1, -1, -1)
            cache.update(keys, values, layer)
        return cache


def freeze(language: LanguageModel, policy: str) -> None:
    """Let only the parts that `policy` names learn.

    Args:
        policy: names joined by "+": all, none, adapters (lora and prefix), lora, prefix, embeddings, norms, biases,
            head, tokens (rows of added tokens), last:N (the last N decoder layers). Rows of added tokens always learn,
            unless the policy is "none".

    Raises:
        ValueError: an unknown name, more layers than there are, or a policy under which nothing would learn.
    """
    terms = policy.split("+")
    tests = [_chosen_by(term.strip(), language.causal_lm) for term in terms]
    table, head = language.causal_lm.get_input_embeddings(), language.causal_lm.get_output_embeddings()
    for name, parameter in language.named_parameters():
        # A tied table goes by the embedding's name alone, and is the head as well.
        known = f"{name} lm_head.weight" if parameter is table.weight and head.weight is table.weight else name
        learns = any(test(known) for test in tests) or (terms != ["none"] and name.endswith(".rows"))
        parameter.requires_grad_(learns and parameter.is_floating_point())
    if terms != ["none"] and not any(parameter.requires_grad for parameter in language.parameters()):
        raise ValueError(
            f"train={policy!r} leaves 0 parameters of the language model to learn: it has "
            f"lora={language.lora}, prefix={language.prefix}; say train='none' if that is meant"
        )


def _chosen_by(term: str, model: PreTrainedModel) -> Callable[[str], bool]:
    patterns = {
        "all": r"", "none": r"(?!)", "lora": r".*lora_",
        "prefix": r"prefix_states", "adapters": r".*lora_|prefix_states",
        "embeddings": r".*(?:embed_tokens|embed_in|word_embeddings|wte)\b", "head": r".*(?:lm_head|embed_out)\b",
        "norms": r"(?!prefix_states).*(?:norm|\bln_)[^.]*\.(?:weight|bias)", "biases": r".*\.bias$",
        "tokens": r".*\.rows$",
    }  # fmt: skip
    if term in patterns:
        return lambda name: re.match(patterns[term], name) is not None
    last = re.fullmatch(r"last:(\d+)", term)
    if last is None:
        raise ValueError(f"train names {term!r}, known are {', '.join(POLICIES)}, joined by '+'")
    count, depth = int(last[1]), len(decoder_layers(model))
    if not 0 < count <= depth:
        raise ValueError(f"train='last:{count}' of a language model with {depth} layers: name 1 to {depth}")
    return lambda name: any(int(index) >= depth - count for index in re.findall(r"\blayers\.(\d+)\.", name))


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers, one after the other.

    Raises:
        ValueError: an architecture that keeps them elsewhere.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"{type(model).__name__} has no list decoder.layers: injection and 'last:N' need one, as in Llama, Qwen, "
            "Phi, Gemma, SmolLM and Mistral"
        )
    return layers


def recompute_frozen(language: LanguageModel) -> None:
    """Let a language model that a stage does not train recompute its layers where `checkpointing` asks for it: what
    comes before it learns through them, and transformers recomputes in training mode alone. Only the layers' own mode
    changes: their parts, dropout among them, stay as in use.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    if language.prefix_states is not None:  # read from a cache, which recomputing drops
        return
    for layer in language.modules():
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
            layer.training = True


# --- counting -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartCount:
    """How many parameters a part has and how many of them learn."""

    part: str
    learns: int
    total: int


def count_parameters(modules: dict[str, nn.Module | None]) -> list[PartCount]:
    """Exact counts, a row a part and a last row "all"; a weight that two parts share is counted where it comes first.

    The language model is split into what learns there: base, lora, prefix, new tokens.

    Args:
        modules: name → module, such as {"encoder": model.encoder, …}; None is left out.
    """
    found: dict[str, list[int]] = {}
    seen: set[int] = set()
    for part, module in modules.items():
        for name, parameter in () if module is None else module.named_parameters():
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            size = _elements(parameter)
            kind = part if part != "language" else f"language: {_kind(name)}"
            entry = found.setdefault(kind, [0, 0])
            entry[0] += size if parameter.requires_grad else 0
            entry[1] += size
    rows = [PartCount(part, learns, total) for part, (learns, total) in found.items()]
    return [*rows, PartCount("all", sum(row.learns for row in rows), sum(row.total for row in rows))]


def parameter_table(modules: dict[str, nn.Module | None]) -> str:
    """The counts as text, for the log."""
    rows = count_parameters(modules)
    width = max(len(row.part) for row in rows)
    lines = [
        f"{row.part:<{width}}  {row.learns:>15,} of {row.total:>15,} learn ({row.learns / max(1, row.total):.2%})"
        for row in rows
    ]
    return "\n".join(lines)


def _kind(name: str) -> str:
    if "lora_" in name:
        return "lora"
    return "prefix" if name.startswith("prefix_states") else "new tokens" if name.endswith(".rows") else "base"


def _elements(parameter: nn.Parameter) -> int:
    """Weights packed to 4 bits hold two in a byte; their unpacked shape is counted."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())


# --- merging --------------------------------------------------------------------------------------------------


def dense_state(language: LanguageModel) -> dict[str, Tensor]:
    """The language model's state with 4-bit weights unpacked, so that it loads without bitsandbytes."""
    packed = {name for name, parameter in language.named_parameters() if hasattr(parameter, "quant_state")}
    state = {
        name: tensor
        for name, tensor in language.state_dict().items()
        if not any(name.startswith(f"{weight}.") for weight in packed)
    }
    for name in packed:
        state[name] = _unpacked(language.get_parameter(name), language.causal_lm.dtype)
    return state


def adapts_tied_head(language: LanguageModel) -> bool:
    """Whether an adapter lies on a head that is tied to the embeddings: merged, they are two tables."""
    table, head = language.causal_lm.get_input_embeddings(), language.causal_lm.get_output_embeddings()
    return table.weight is head.weight and hasattr(head, "base_layer")


def merged_state(language: LanguageModel) -> dict[str, Tensor]:
    """The language model's state with its LoRA adapters added into the weights, under the plain model's names.

    The model itself is left as it is; one layer at a time is copied.
    """
    if language.lora is None:
        return dense_state(language)
    from peft.tuners.lora import LoraLayer

    wrapper = "model.base_model.model."
    state = {
        name.replace(wrapper, "model.", 1): tensor
        for name, tensor in dense_state(language).items()
        if "lora_" not in name
    }
    for path, module in language.causal_lm.named_modules():
        if isinstance(module, LoraLayer):
            for name, tensor in _merged(module, language.causal_lm.dtype).items():
                state[f"model.{path}.base_layer.{name}"] = tensor
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items()}


def _merged(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    base = module.get_base_layer()
    if not hasattr(base.weight, "quant_state"):
        twin = copy.deepcopy(module)
        twin.merge()
        return twin.get_base_layer().state_dict()
    # Added to the unpacked weight: merging into 4 bits would round the adapter away.
    name = module.active_adapters[0]
    if module.use_dora.get(name, False):
        raise ValueError("merge=True with DoRA on 4-bit weights: save without merge, or train on bfloat16 weights")
    weight = _unpacked(base.weight, torch.float32) + module.get_delta_weight(name).float()
    return {"weight": weight.to(dtype)} | ({} if base.bias is None else {"bias": base.bias})


def _unpacked(weight: nn.Parameter, dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state).to(dtype)
