"""Put another language model into the same seat: any Hugging Face folder or Hub name, a GGUF file, with LoRA.

    python examples/swap_language_model.py [FOLDER]

Without a folder a tiny random one is made, so that this runs offline.
"""

import sys
import tempfile
from functools import partial

import torch

import vol3d
from vol3d.model.language import Lora

folder = sys.argv[1] if len(sys.argv) > 1 else None
if folder is None:
    folder = tempfile.mkdtemp()
    tiny = vol3d.LanguageModel.scratch(["The liver is normal."], embed_dim=32, depth=2, num_heads=2)
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)

language = vol3d.LanguageModel.pretrained(folder, lora=Lora(rank=8))  # gguf_file="model.gguf" for a GGUF file
model = vol3d.VolumeLM(
    vol3d.encoders.create("vit3d-tiny", depth=1),
    partial(vol3d.PerceiverProjector, num_latents=8, num_heads=2),  # meets whatever width the language model has
    language,
)
learns = sum(parameter.numel() for parameter in language.parameters() if parameter.requires_grad)
print(f"{type(language.causal_lm).__name__}, width {language.embed_dim}, {learns:,} LoRA parameters learn")

features = model.encode(torch.randn(2, 1, 32, 32, 16))
prompts = ["<volume>\nWrite the report of this CT.\n"] * 2
loss = model.language_loss(features, prompts, ["The liver is normal.", "There is ascites."])
loss.backward()
print(f"loss {loss.item():.2f}; says {model.generate(features, prompts, max_new_tokens=5)}")
