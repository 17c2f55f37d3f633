"""Encoders: a volume on a grid → Features. One family a file; `names()` lists the named configurations."""

if __name__ != "vol3d.encoders":
    raise ImportError("import vol3d.encoders, not the folder encoders")

from typing import Any

from vol3d.encoders.vit3d import VIT3D_CONFIGS, ViT3D
from vol3d.model.interfaces import Encoder

_CONFIGS: dict[str, tuple[type[Encoder], dict[str, Any]]] = {
    name: (ViT3D, config) for name, config in VIT3D_CONFIGS.items()
}

__all__ = ["ViT3D", "create", "names"]


def names() -> list[str]:
    """The names `create` knows."""
    return sorted(_CONFIGS)


def create(name: str, weights: str | None = None, **overrides: Any) -> Encoder:
    """Build an encoder by name, offline and randomly initialised unless `weights` names a file.

    Args:
        name: one of `names()`.
        weights: a .safetensors file of this encoder's own state dict.
        overrides: constructor arguments that replace the named configuration's.

    Raises:
        ValueError: unknown name (the known ones are listed), or weights whose keys do not fit.

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
        _load(encoder, weights)
    return encoder


def _load(encoder: Encoder, weights: str) -> None:
    from safetensors.torch import load_file

    state, own = load_file(weights), encoder.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(
            f"{weights} does not fit {type(encoder).__name__}: {len(missing)} of {len(own)} tensors missing "
            f"{missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}; convert a peer's file with `vol3d convert`"
        )
    encoder.load_state_dict(state)
