"""A peer's published weights → ours: safe reading, renamed keys, axes turned once.

Peers store kernels and position tables in (D, H, W) order; here they are turned to x, y, z, so that no volume is ever
permuted. What each peer's axes mean is written beside its rules.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vol3d import __version__
from vol3d.encoders import create
from vol3d.encoders.foreign import PEERS, Peer, apply
from vol3d.encoders.hub import fetch, hub_name
from vol3d.encoders.weights import read_state
from vol3d.model.interfaces import Encoder
from vol3d.volume.atomic import save_tensors


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote.

    `encoder` is the name to pass to `create` with `weights=folder`; `projector` names the class of
    projector.safetensors, when the file held one; `left_behind` lists tensors of the peer that have no place here.
    """

    folder: Path
    encoder: str
    parameters: int
    tensors: int
    projector: str | None
    left_behind: tuple[str, ...]


def names() -> list[str]:
    """The peers `convert` knows."""
    return sorted(PEERS)


def convert(name: str, weights: str | Path, out: str | Path, **overrides: Any) -> Converted:
    """Turn a peer's checkpoint into a folder for `vol3d.encoders.create(…, weights=folder)`.

    Args:
        name: one of `names()`.
        weights: the peer's file (.pt, .pth, .bin, .ckpt, .safetensors), a folder of Hugging Face shards, or its name on
            the Hub ("stanfordmimi/Merlin"; another file of a repository: "org/repo:FILE").
        out: the folder to write: encoder.safetensors, convert.json, and projector.safetensors when there is one.
        overrides: arguments for `create` when the weights are of another size than the published ones.

    Raises:
        ValueError: unknown peer, a file that is absent, wants to run code or is no checkpoint, keys that are missing
            or unexpected (both listed), shapes that do not fit, or `out` is something else already.

    Example:
        vol3d convert m3d-clip pretrained_ViT.bin m3d-clip  →  create("m3d-clip", weights="m3d-clip")
    """

    peer = find(name)
    out = Path(out)
    if out.exists() and not (out / "convert.json").is_file():
        raise ValueError(f"{out} exists and is not an earlier conversion: choose another folder, nothing was written")
    foreign = read_state(find_file(name, weights))
    with torch.device("meta"):
        encoder = create(peer.encoder, **overrides)
    state, left_behind = translate(name, foreign, encoder, source=str(weights))
    projector = apply(peer.projector, foreign)
    report = {
        "vol3d": __version__, "name": name, "encoder": peer.encoder, "overrides": overrides,
        "preset": getattr(encoder, "preset", None), "projector": peer.projector_class if projector else None,
        "left_behind": left_behind,
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    # The draft lies beside the final folder, so that the last step is a rename on one file system.
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        save_tensors(state, draft / "encoder.safetensors", {"format": "pt", "vol3d": __version__})
        if projector:
            save_tensors(projector, draft / "projector.safetensors", {"format": "pt", "vol3d": __version__})
        (draft / "convert.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        draft.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        draft.rename(out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    count = sum(parameter.numel() for parameter in encoder.parameters())
    return Converted(out, peer.encoder, count, len(state), report["projector"], tuple(left_behind))


def translate(
    name: str, foreign: Mapping[str, Tensor], encoder: Encoder, *, source: str = "the state dict"
) -> tuple[dict[str, Tensor], list[str]]:
    """A peer's state dict → the encoder's, and the peer's keys left behind.

    Args:
        encoder: built with the sizes of the weights; its own tensors are only looked at for their shapes.

    Raises:
        ValueError: as `convert`.
    """
    peer = find(name)
    prefix = _prefix(name, peer, foreign, source)
    inside = {key.removeprefix(prefix): tensor for key, tensor in foreign.items() if key.startswith(prefix)}
    state, unexpected, left_behind = {}, [], []
    for key, tensor in inside.items():
        rule = next((rule for rule in peer.rules if rule.matches(key)), None)
        if rule is None:
            unexpected.append(key)
        elif rule.ours is None:
            left_behind.append(key)
        else:
            state[rule.rename(key)] = rule.turned(tensor, encoder)
    own = encoder.state_dict()
    state.update({key: tensor for key, tensor in apply(peer.beside, foreign).items() if key in own})
    if prefix == "":  # a whole model without a prefix: what belongs to none of the rules is another part of it
        unexpected = [key for key in unexpected if not apply((*peer.beside, *peer.projector), {key: inside[key]})]
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(unexpected + list(state.keys() - own.keys()))
    if missing or unexpected:
        raise ValueError(
            f"{source} is not {name}'s as published: {len(missing)} of {len(own)} tensors missing {missing[:5]}, "
            f"{len(unexpected)} unexpected {unexpected[:5]}; choose another of {', '.join(names())}, or give the "
            "arguments the encoder was built with"
        )
    for key, tensor in state.items():
        if tensor.shape != own[key].shape:
            raise ValueError(
                f"{source}: {key} comes as {tuple(tensor.shape)}, {peer.encoder} has {tuple(own[key].shape)}: give "
                "the arguments the encoder was built with"
            )
    return state, sorted(left_behind)


def find(name: str) -> Peer:
    """The rules for a peer.

    Raises:
        ValueError: unknown (the known ones are listed).
    """
    if name not in PEERS:
        raise ValueError(f"no rules to convert {name!r}; there are {', '.join(names())}")
    return PEERS[name]


def find_file(name: str, weights: str | Path) -> Path:
    """The file a peer's `weights` are in: `weights` itself, or what the Hub has under this name.

    Raises:
        ValueError: a Hub name without a file, of a repository that is not where the peer is published; or as `fetch`.
    """
    on_hub = hub_name(weights)
    if on_hub is None:
        return Path(weights)
    known = hub_name(find(name).hub or "")
    file = on_hub.file or (known.file if known and known.repository == on_hub.repository else None)
    if file is None:
        published = f"{known} is where it is published" if known else "its files are split or zipped: download them"
        raise ValueError(
            f"{weights} is no file or folder here; on the Hub, name the file: {weights}:FILE ({published})"
        )
    return fetch(on_hub, file)


def _prefix(name: str, peer: Peer, foreign: Mapping[str, Tensor], source: str) -> str:
    """Where in the peer's model the encoder sits: the first known prefix under which its anchor tensor is found."""
    for prefix in peer.prefixes:
        if prefix + peer.anchor in foreign:
            return prefix
    tried = ", ".join(repr(prefix + peer.anchor) for prefix in peer.prefixes)
    raise ValueError(
        f"{source} has no {name} encoder: none of {tried} is among its {len(foreign)} tensors "
        f"({', '.join(sorted(foreign)[:3])} …)"
    )
