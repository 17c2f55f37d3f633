"""Two processes on this machine, as two GPUs would be: forked, so that nothing is imported twice, joined by gloo."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def together(work: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What `work(*arguments)` gives in each of two processes; Lightning takes them for ones a cluster started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    mp.start_processes(_rank, (work, folder, port, arguments), nprocs=2, start_method="fork")
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(2)]


def _rank(rank: int, work: Callable[..., Any], folder: Path, port: int, arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0",
        "LOCAL_RANK": str(rank),
    }  # fmt: skip
    torch.set_num_threads(1)
    torch.save(work(*arguments), folder / f"result-{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()
