"""A language model in a folder as a function from prompt to answer, greedy, so that the answer is always the same."""

from __future__ import annotations

from pathlib import Path

import torch

from vol3d.model.tokens import without_today


class LocalChat:
    """A transformers language model and its tokenizer, both in `folder`; nothing is fetched.

    Args:
        folder: as `save_pretrained` wrote it. max_new_tokens: longest answer. device: where it runs.

    Raises:
        ValueError: the folder has no config.json.
    """

    def __init__(self, folder: str | Path, max_new_tokens: int = 16, device: str = "cpu") -> None:
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"{folder} has no config.json: give the folder of a language model with its tokenizer")
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.model = model.to(device).eval()
        self.max_new_tokens = max_new_tokens
        self.__name__ = str(folder)

    def __call__(self, prompt: str) -> str:
        if self.tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}]
            template = without_today(self.tokenizer.chat_template)
            ids = self.tokenizer.apply_chat_template(
                turns, chat_template=template, add_generation_prompt=True, return_tensors="pt"
            )
            ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
        else:
            ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        ids = ids.to(self.model.device)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        with torch.inference_mode():
            said = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=self.max_new_tokens,
                pad_token_id=pad,
            )
        return self.tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True)
