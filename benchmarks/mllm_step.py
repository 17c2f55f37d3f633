"""One LoRA step of a 135 M language model on 256 visual and 256 text tokens, against the same model in M3D's manner.

    python benchmarks/mllm_step.py --json mllm_step.json        # SmolLM2-135M's and M3D's own sizes: minutes on a CPU
    python benchmarks/mllm_step.py --tiny                       # seconds, to see that it works
    python benchmarks/mllm_step.py --threads 1                  # one core's seconds; else all cores'
    python benchmarks/mllm_step.py --device cuda --dtype bfloat16
    python benchmarks/mllm_step.py --device cuda --dtype bfloat16 --llm 7b --batch 4   # one H200: 0.19 s at most

The peer: MONAI's ViT (attention scores written out, the list of hidden states kept), 2 × 2 × 2 pooling and an MLP,
peft's LoRA r16 on every linear layer of the language model (without M3D's dropout of 0.05: ours has none here either),
encoder, projector, embedding and head trained, as M3D's fine-tuning has it, logits at all 512 positions and their
cross-entropy in fp32, shifted by copies. Ours: the same shapes, LoRA and text, embedding and head frozen; the encoder
trained, frozen, or skipped because its features are cached. Both read 256 text tokens: no padding is saved. Weights are
random, which changes no time. Every measurement is a process of its own; a ratio is median over median, below 1 where
ours is better.
Memory is what the process took beyond the model.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vol3d
from vol3d.model.language import LanguageModel, Lora, train_tokenizer

RESULTS = Path(__file__).parent / "results"
SHAPE, TINY_SHAPE = (256, 256, 32), (64, 64, 16)
# work → (what runs on our side, what on the peer's, target for time, target for memory)
WORKS = {
    "step, encoder trained": ("ours-trained", "peer-step", 0.50, 0.50),
    "step, encoder frozen": ("ours-frozen", "peer-step", 0.30, 0.50),
    "step, features cached": ("ours-cached", "peer-step", 0.15, 0.50),
    "logits and loss": ("ours-loss", "peer-loss", 0.25, 0.50),
}


# Shapes of a tiny Llama, SmolLM2-135M and Llama-2-7B: width, MLP, layers, heads, key-value heads, words, tied; and how
# many text tokens they are given.
TEXT = {"tiny": 256, "135m": 256, "7b": 512}
LLMS = {
    "tiny": (64, 96, 2, 4, 2, 2048, True),
    "135m": (576, 1536, 30, 9, 3, 49152, True),
    "7b": (4096, 11008, 32, 32, 32, 32000, False),
}


def causal_lm(llm: str) -> nn.Module:
    """A language model of this shape with random weights; the large one in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "vocab_size", "tie_word_embeddings")  # fmt: skip
    config = LlamaConfig(max_position_embeddings=2048, **dict(zip(names, LLMS[llm], strict=True)))
    return LlamaForCausalLM(config).to(torch.bfloat16 if llm == "7b" else torch.float32)


def shape(llm: str) -> tuple[int, int, int]:
    """Of the volume that goes with this language model."""
    return TINY_SHAPE if llm == "tiny" else SHAPE


def our_model(llm: str, *, lora: bool = True) -> vol3d.VolumeLM:
    """ViT3D at M3D's size, spatial pooling, the language model."""
    sizes = {"embed_dim": 96, "depth": 2, "num_heads": 3} if llm == "tiny" else {}
    grid = tuple(size // patch for size, patch in zip(shape(llm), (16, 16, 4), strict=True))
    words = train_tokenizer(["The liver is normal. There is a left pleural effusion."], 300)
    language = LanguageModel(causal_lm(llm), words, lora=Lora(rank=16, alpha=32) if lora else None)
    return vol3d.VolumeLM(
        vol3d.encoders.create("m3d-clip", grid_size=grid, **sizes), partial(vol3d.SpatialPoolingProjector), language
    )


class PeerEncoder(nn.Module):
    """MONAI's ViT as M3D builds it, and its pooling projector."""

    def __init__(self, width_out: int, llm: str) -> None:
        super().__init__()
        from monai.networks.nets import ViT

        x, y, z = shape(llm)
        width, depth, heads = (96, 2, 3) if llm == "tiny" else (768, 12, 12)
        self.grid = (z // 4, x // 16, y // 16)
        self.vit = ViT(1, (z, x, y), (4, 16, 16), width, 4 * width, depth, heads, proj_type="perceptron",
                       pos_embed_type="learnable", classification=True)  # fmt: skip
        del self.vit.classification_head  # all tokens come out, the CLS token first
        self.mlp = nn.Sequential(nn.Linear(width, width_out), nn.GELU(), nn.Linear(width_out, width_out))

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.vit(image.permute(0, 1, 4, 2, 3))[0]
        grid = tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, *self.grid)
        return self.mlp(F.avg_pool3d(grid, 2).flatten(2).transpose(1, 2))


def full_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over every position in fp32, shifted by copies."""
    logits = logits.float()
    shifted = logits[:, :-1].contiguous()
    return F.cross_entropy(shifted.view(-1, shifted.shape[-1]), labels[:, 1:].contiguous().view(-1), ignore_index=-100)


def text(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Word ids, the same for both sides: 20 a row of the prompt, then the answer; and the labels."""
    shape, words = (args.batch, TEXT[args.llm]), LLMS[args.llm][5]
    ids = torch.randint(300, words, shape, generator=torch.Generator().manual_seed(0)).to(args.device)
    labels = ids.clone()
    labels[:, :20] = -100
    return ids, labels


def our_step(model: vol3d.VolumeLM, image: Tensor, cached: Any, args: argparse.Namespace) -> Tensor:
    features = model.encode(image) if cached is None else cached
    visual = model.project(features)
    ids, labels = text(args)
    embeds = model.language.causal_lm.get_input_embeddings()(ids)
    embeds = torch.cat([visual.to(embeds.dtype), embeds], dim=1)
    labels = F.pad(labels, (visual.shape[1], 0), value=-100)
    return model.language.loss(embeds, torch.ones_like(labels), labels)


def peer_step(encoder: PeerEncoder, model: nn.Module, image: Tensor, args: argparse.Namespace) -> Tensor:
    visual = encoder(image)
    ids, labels = text(args)
    embeds = torch.cat([visual, model.get_input_embeddings()(ids)], dim=1)
    labels = F.pad(labels, (visual.shape[1], 0), value=-100)
    logits = model(inputs_embeds=embeds, attention_mask=torch.ones_like(labels), use_cache=False).logits
    return full_loss(logits, labels)


def runner(side: str, args: argparse.Namespace) -> Any:
    """A function that takes one step, and its parameters."""
    image = torch.rand(args.batch, 1, *shape(args.llm), device=args.device)
    if side.endswith("loss"):
        return _loss_runner(side, args)
    if side == "peer-step":
        model = _peer_lora(causal_lm(args.llm)).to(args.device).train()
        model.get_input_embeddings().weight.requires_grad_()
        encoder = PeerEncoder(model.config.hidden_size, args.llm).to(args.device).train()
        return (lambda: peer_step(encoder, model, image, args)), [*encoder.parameters(), *model.parameters()]
    model = our_model(args.llm).to(args.device).train()
    cached = None
    if side != "ours-trained":
        model.encoder.requires_grad_(False).eval()
    if side == "ours-cached":
        with torch.no_grad():
            cached = model.encode(image)
    return (lambda: our_step(model, image, cached, args)), list(model.parameters())


def _peer_lora(model: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    linear = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, linear)


def _loss_runner(side: str, args: argparse.Namespace) -> Any:
    """Head and loss alone, on hidden states that want a gradient; the peer trains its head, ours adapts the rest."""
    from vol3d.model.cross_entropy import linear_cross_entropy

    width, words = LLMS[args.llm][0], LLMS[args.llm][5]
    head = nn.Linear(width, words, bias=False).to(args.device).requires_grad_(side == "peer-loss")
    labels = F.pad(text(args)[1], (256, 0), value=-100)
    hidden = torch.randn(args.batch, labels.shape[1], width, device=args.device, requires_grad=True)
    chosen = labels[:, 1:] != -100

    def ours() -> Tensor:
        return linear_cross_entropy(hidden[:, :-1][chosen], head, labels[:, 1:][chosen])

    return (ours if side == "ours-loss" else lambda: full_loss(head(hidden), labels)), [hidden, *head.parameters()]


def measure(side: str, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of forward, backward and optimizer step, and MiB beyond the model."""
    torch.manual_seed(0)
    step, parameters = runner(side, args)
    fused = side.startswith("ours")  # as VolumeModule has it; M3D's trainer takes transformers' plain "adamw_torch"
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=1e-4, fused=fused)
    cuda = args.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 2**20 if cuda else resident(peak=False)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    seconds = []
    for _ in range(args.repeats + 1):
        start = clock()
        with torch.autocast(args.device, dtype=getattr(torch, args.dtype), enabled=args.dtype != "float32"):
            loss = step()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    after = torch.cuda.max_memory_allocated() / 2**20 if cuda else resident(peak=True)
    return {"seconds": statistics.median(seconds[1:]), "mib": after - before}


def resident(*, peak: bool) -> float:
    """MiB this process holds, or held at most."""
    if not peak and Path("/proc/self/statm").exists():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def in_a_process(script: str, side: str, args: argparse.Namespace) -> dict[str, float]:
    """One measurement in a fresh Python."""
    command = [sys.executable, script, "--one", side, "--device", args.device, "--dtype", args.dtype]
    command += ["--batch", str(args.batch), "--repeats", str(args.repeats), "--threads", str(args.threads)]
    command += ["--clock", args.clock, "--llm", args.llm]
    if "organs" in args:  # an option of generation.py alone
        command += ["--organs", str(args.organs)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(script: str, works: dict[str, tuple[str, str, float, float | None]], args: argparse.Namespace) -> list[Any]:
    """A row a work: both sides in turn, `--rounds` times."""
    sides = list(dict.fromkeys(side for work in works.values() for side in work[:2]))
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side in sides:
            found[side].append(in_a_process(script, side, args))
    median = {
        side: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for side, runs in found.items()
    }
    rows = []
    for work, (ours, peer, target, memory) in works.items():
        row = {
            "work": work, "peer": peer, "ours_s": median[ours]["seconds"], "peer_s": median[peer]["seconds"],
            "ratio": median[ours]["seconds"] / median[peer]["seconds"], "target": target,
            "memory_ratio": median[ours]["mib"] / max(1.0, median[peer]["mib"]) if memory else None,
            "memory_target": memory, "ours_mib": median[ours]["mib"], "peer_mib": median[peer]["mib"],
        }  # fmt: skip
        rows.append(row)
        more = f" · memory {row['memory_ratio']:.2f} (target {memory})" if memory else ""
        sys.stderr.write(
            f"{work}: {row['ours_s']:.3f} s / {row['peer_s']:.3f} s = {row['ratio']:.2f} (target {target}){more}\n"
        )
    return rows


def options(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--llm", default="135m", choices=list(LLMS), help="7b: bfloat16, 512 text tokens, for a GPU")
    parser.add_argument("--tiny", dest="llm", action="store_const", const="tiny", help="small networks and volumes")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2, help="runs a process, after one to warm up")
    parser.add_argument("--rounds", type=int, default=1, help="processes a side")
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu: where others use the machine too"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--record", action="store_true", help=f"write a dated file into {RESULTS.name}/ as well")
    parser.add_argument("--one", metavar="SIDE", help=argparse.SUPPRESS)
    return parser


def write(name: str, rows: list[Any], args: argparse.Namespace) -> None:
    """The report to `--json`, and with `--record` to benchmarks/results/DATE-NAME.json."""
    import transformers

    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    report = {
        "rows": rows, "date": datetime.date.today().isoformat(), "vol3d": vol3d.__version__, "torch": torch.__version__,
        "transformers": transformers.__version__, "machine": platform.machine(), "gpu": gpu, "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1), "device": args.device, "dtype": args.dtype, "threads": args.threads,
        "clock": args.clock, "llm": args.llm, "batch": args.batch, "rounds": args.rounds, "repeats": args.repeats,
        "organs_timed": getattr(args, "organs", None),
    }  # fmt: skip
    text = json.dumps(report, indent=2) + "\n"
    if args.json:
        args.json.write_text(text, encoding="utf-8")
    if args.record:
        RESULTS.mkdir(exist_ok=True)
        kind = args.device if args.threads == 1 else f"{args.device}-{args.threads}-threads"
        (RESULTS / f"{report['date']}-{name}-{kind}.json").write_text(text, encoding="utf-8")


def main() -> None:
    args = options(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        sys.stdout.write(json.dumps(measure(args.one, args)) + "\n")
        return
    write("mllm_step", compare(__file__, WORKS, args), args)


if __name__ == "__main__":
    main()
