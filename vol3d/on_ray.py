"""An array job's commands on a Ray cluster: the same verbs and shards, another scheduler."""

from __future__ import annotations

from collections.abc import Sequence


def on_ray(command: Sequence[str], shards: int, *, cpus: float | int = 1, gpus: float | int = 0) -> list[int]:
    """Run `vol3d COMMAND` once for each shard, as Ray tasks, and give their exit codes in order.

    Paths must mean the same on every node. A shard that is run again makes only what is missing, so after a failure the
    same call goes on. Joins the cluster that `ray.init` or RAY_ADDRESS names, else starts one on this machine.

    Args:
        command: arguments as after `vol3d`; "{shard}" becomes "3/64" and "{index}" becomes "3".
        cpus, gpus: of one task.

    Raises:
        ValueError: a command that would do the same in every task. ImportError: ray is not installed.

    Example:
        >>> words = "prepare data/manifest.jsonl --grid merlin --cache /shared/cache --shard {shard}".split()
        >>> on_ray(words, 64)  # doctest: +SKIP
    """
    if not any("{shard}" in word for word in command):
        raise ValueError(f"vol3d {' '.join(command)}: say where the shard goes, as in --shard {{shard}}")
    try:
        import ray
    except ImportError as error:
        raise ImportError('running on Ray needs the package ray: pip install "vol3d[ray]"') from error
    if not ray.is_initialized():
        ray.init()
    task = ray.remote(num_cpus=cpus, num_gpus=gpus)(_run)
    each = [
        [word.replace("{shard}", f"{index}/{shards}").replace("{index}", str(index)) for word in command]
        for index in range(shards)
    ]
    return ray.get([task.remote(words) for words in each])


def _run(words: list[str]) -> int:
    from vol3d.cli import main

    return main(words)
