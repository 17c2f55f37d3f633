"""Encoders: a volume on a grid → Features. One family a file; `names()` lists the named configurations."""

if __name__ != "vol3d.encoders":
    raise ImportError("import vol3d.encoders, not the folder encoders")

from pathlib import Path
from typing import Any

from torch import Tensor

from vol3d.encoders.ctvit import CTVIT_CONFIGS, CTViT
from vol3d.encoders.ensemble import ENSEMBLE_CONFIGS, Ensemble
from vol3d.encoders.hub import fetch, hub_name
from vol3d.encoders.resnet3d import RESNET3D_CONFIGS, ResNet3D
from vol3d.encoders.slices import SLICE_CONFIGS, SliceEncoder
from vol3d.encoders.spectre import SPECTRE_CONFIGS, SpectreEncoder
from vol3d.encoders.swin import SWIN_CONFIGS, SwinEncoder
from vol3d.encoders.unet3d import UNET3D_CONFIGS, UNet3D
from vol3d.encoders.vit3d import VIT3D_CONFIGS, ViT3D
from vol3d.model.interfaces import Encoder

_FAMILIES: list[tuple[type[Encoder], dict[str, dict[str, Any]]]] = [
    (ViT3D, VIT3D_CONFIGS),
    (ResNet3D, RESNET3D_CONFIGS),
    (CTViT, CTVIT_CONFIGS),
    (UNet3D, UNET3D_CONFIGS),
    (SwinEncoder, SWIN_CONFIGS),
    (SliceEncoder, SLICE_CONFIGS),
    (SpectreEncoder, SPECTRE_CONFIGS),
    (Ensemble, ENSEMBLE_CONFIGS),
]
_CONFIGS = {name: (kind, config) for kind, configs in _FAMILIES for name, config in configs.items()}

__all__ = [
    "CTViT",
    "Ensemble",
    "ResNet3D",
    "SliceEncoder",
    "SpectreEncoder",
    "SwinEncoder",
    "UNet3D",
    "ViT3D",
    "create",
    "names",
]


def names() -> list[str]:
    """The names `create` knows."""
    return sorted(_CONFIGS)


def create(name: str, weights: str | Path | None = None, **overrides: Any) -> Encoder:
    """Build an encoder by name, offline and randomly initialised unless `weights` names a file.

    Args:
        name: one of `names()`.
        weights: a .safetensors file of this encoder's own state dict, or the folder `vol3d convert` wrote; or a name on
            the Hub, which is downloaded now: a repository that holds what `vol3d convert` wrote, or the one in which
            the peer published this encoder ("stanfordmimi/Merlin"), whose file is then converted.
        overrides: constructor arguments that replace the named configuration's.

    Raises:
        ValueError: unknown name (the known ones are listed), weights whose keys or shapes do not fit, or a Hub name
            that is gated, absent or out of reach.

    Example:
        >>> import vol3d
        >>> encoder = vol3d.encoders.create("vit3d-tiny", in_channels=3)
        >>> encoder.in_channels
        3
    """
    if name not in _CONFIGS:
        raise ValueError(f"no encoder is called {name!r}; there are {', '.join(names())}")
    kind, config = _CONFIGS[name]
    encoder = kind(**{**config, **overrides})
    if weights is not None:
        _load(encoder, name, weights)
    return encoder


def _load(encoder: Encoder, name: str, weights: str | Path) -> None:
    on_hub = hub_name(weights)
    if on_hub is None:
        encoder.load_state_dict(_own(encoder, Path(weights)))
        return
    from vol3d.encoders.convert import find_file, translate
    from vol3d.encoders.foreign import PEERS
    from vol3d.encoders.weights import read_state

    for peer, rules in PEERS.items():
        known = hub_name(rules.hub or "")
        if rules.encoder == name and known is not None and known.repository == on_hub.repository:
            state, _ = translate(peer, read_state(find_file(peer, weights)), encoder, source=str(on_hub))
            encoder.load_state_dict(state)
            return
    encoder.load_state_dict(_own(encoder, fetch(on_hub, on_hub.file or "encoder.safetensors")))


def _own(encoder: Encoder, weights: Path) -> dict[str, Tensor]:
    """The state dict in a file or folder of ours, checked against the encoder's."""
    from safetensors.torch import load_file

    path = weights / "encoder.safetensors" if weights.is_dir() else weights
    if not path.is_file():
        raise ValueError(f"{path} is not there: give a .safetensors file, or the folder `vol3d convert` wrote")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is not a .safetensors file: turn a peer's weights into ours with `vol3d convert`")
    state, own = load_file(path), encoder.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(
            f"{weights} does not fit {type(encoder).__name__}: {len(missing)} of {len(own)} tensors missing "
            f"{missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}; convert a peer's file with `vol3d convert`"
        )
    for key, tensor in state.items():
        if tensor.shape != own[key].shape:
            raise ValueError(
                f"{weights}: {key} is {tuple(tensor.shape)}, the encoder has {tuple(own[key].shape)}: create it with "
                "the arguments it was trained with"
            )
    return state
