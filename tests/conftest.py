"""Shared by all tests: offline, one torch thread, and a small world to train in."""

import os
from pathlib import Path

# Two torch threads on a busy machine are slower than one; the hubs are never asked.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
