"""Writing with a 135 M language model: 13 organ prompts, time to first token, and the decode loop.

    python benchmarks/generation.py --json generation.json      # minutes on a CPU
    python benchmarks/generation.py --tiny                      # seconds, to see that it works

- 13 organ prompts for one volume: Merlin's loop encodes the volume and prefills each prompt anew and writes one report
  section at a time with transformers' generate; ours encodes once, prefills what the prompts share once and writes all
  sections together. Both have our encoder, so that only the loop differs. `--organs` times the first few rounds of
  Merlin's loop and multiplies: every round costs the same.
- time to first token: M3D's MONAI ViT, pooling and prefill, against ours.
- decode loop: a decoder as small as the demo's, milliseconds a token, against transformers' generate; on a GPU by one
  captured graph.
Both sides have the same language model, random weights, and write the same number of tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from mllm_step import PeerEncoder, causal_lm, compare, options, our_model, resident, shape, write

from vol3d.model.generation import greedy
from vol3d.model.language import LanguageModel, Scratch

ORGANS = ("lower thorax", "liver", "gallbladder", "spleen", "pancreas", "adrenal glands", "kidneys", "bowel",
          "peritoneum", "pelvis", "circulatory system", "lymph nodes", "musculoskeletal system")  # fmt: skip
WORKS = {
    "13 organ prompts for one volume": ("ours-organs", "peer-organs", 0.25, None),
    "time to first token": ("ours-first", "peer-first", 0.65, None),
    "decode loop, small decoder, a token": ("ours-decode", "transformers-decode", 0.7, None),
}
TOKENS = 32


def endless(language: LanguageModel) -> LanguageModel:
    """A model that never stops by itself, so that both sides write the same number of tokens."""
    head = language.causal_lm.get_output_embeddings()
    language.causal_lm.generation_config.eos_token_id = None
    keep = head.forward
    end = language.tokenizer.eos_token_id
    head.forward = lambda hidden: keep(hidden).index_fill(-1, torch.tensor([end], device=hidden.device), -1e4)
    return language


def organs(side: str, args: argparse.Namespace) -> Callable[[], Any]:
    model = our_model(args.llm, lora=False).to(args.device).eval()
    endless(model.language)
    image = torch.rand(1, 1, *shape(args.llm), device=args.device)
    prompts = [f"<volume>Generate a radiology report for {organ}###\n" for organ in ORGANS]

    def ours() -> None:
        model.generate_many(model.encode(image), prompts, max_new_tokens=TOKENS)

    def peer() -> None:
        for prompt in prompts[: args.organs]:
            model.generate(model.encode(image), [prompt], max_new_tokens=TOKENS, lean=False)

    return ours if side.startswith("ours") else peer


def first(side: str, args: argparse.Namespace) -> Callable[[], Any]:
    image = torch.rand(1, 1, *shape(args.llm), device=args.device)
    if side.startswith("ours"):
        model = our_model(args.llm, lora=False).to(args.device).eval()
        return lambda: model.generate(model.encode(image), ["<volume>Report:"], max_new_tokens=1)
    model = causal_lm(args.llm).to(args.device).eval()
    encoder = PeerEncoder(model.config.hidden_size, args.llm).to(args.device).eval()
    words = torch.arange(8, device=args.device)[None]

    def peer() -> None:
        embeds = torch.cat([encoder(image), model.get_input_embeddings()(words)], dim=1)
        model.generate(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], device=args.device),
                       max_new_tokens=1, do_sample=False, pad_token_id=0)  # fmt: skip

    return peer


def decode(side: str, args: argparse.Namespace) -> Callable[[], Any]:
    settings = {"embed_dim": 128, "depth": 3, "num_heads": 4, "mlp_ratio": 3.0, "vocab_size": 768}
    language = Scratch(attn_implementation="eager", **settings).build(["The liver is normal."]).to(args.device).eval()
    endless(language).cuda_graph = args.device == "cuda"
    embeds = torch.randn(1, 48, 128, device=args.device)
    mask = torch.ones(1, 48, dtype=torch.long, device=args.device)

    def ours() -> None:
        for _ in greedy(language, embeds, mask, 100):
            pass

    def peer() -> None:
        language.causal_lm.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=100, do_sample=False,
                                    pad_token_id=0, eos_token_id=language.tokenizer.eos_token_id)  # fmt: skip

    return ours if side.startswith("ours") else peer


def measure(side: str, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds, of the decode loop a token."""
    torch.manual_seed(0)
    work = {"organs": organs, "first": first, "decode": decode}[side.split("-")[1]]
    run = work(side, args)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    before, seconds = resident(peak=False), []
    # Minutes on a CPU, beside which a first call's costs are nothing.
    warm = 0 if work is organs and args.device == "cpu" else 1
    with torch.no_grad(), torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
        for _ in range(args.repeats + warm):
            start = clock()
            run()
            if args.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(clock() - start)
    median = statistics.median(seconds[warm:])
    if work is organs and not side.startswith("ours"):
        median *= len(ORGANS) / args.organs
    return {"seconds": median / 100 if work is decode else median, "mib": resident(peak=True) - before}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--organs", type=int, default=len(ORGANS), help="of Merlin's loop to time; each costs the same")
    parser.set_defaults(threads=1)  # a token's time is mostly the host's
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        sys.stdout.write(json.dumps(measure(args.one, args)) + "\n")
        return
    write("generation", compare(__file__, WORKS, args), args)


if __name__ == "__main__":
    main()
