"""Packages that only some encoders need."""

from __future__ import annotations

import importlib
from types import ModuleType


def optional(module: str, *, asker: str, packages: str, extra: str) -> ModuleType:
    """Import `module` for `asker`, which needs `packages` and gets them by the extra `extra`.

    Raises:
        ImportError: it is absent, or its torchvision was built for another torch.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{asker} needs {packages} ({error}): pip install 'vol3d[{extra}]'") from error
    except RuntimeError as error:  # torchvision's operators do not load
        raise ImportError(
            f"{asker} needs {packages}, installed but not to be imported ({error}): install the torchvision that "
            "matches your torch"
        ) from error
