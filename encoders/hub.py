"""Weights by their name on the Hugging Face Hub. Nothing here runs unless `weights` names a repository."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"(datasets/)?([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?(?::(.+))?")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class HubName:
    """`org/repo`, with `@revision`, `:file in it`, or `datasets/` in front of a data set's repository.

    Args:
        repository: org/repo. kind: "model" or "dataset". revision: a branch, tag or commit. file: a path in it.
    """

    repository: str
    kind: str = "model"
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        front, back = ("datasets/" if self.kind == "dataset" else ""), (f"@{self.revision}" if self.revision else "")
        return f"{front}{self.repository}{back}"

    @property
    def address(self) -> str:
        return f"https://huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.repository}"


def hub_name(weights: str | Path) -> HubName | None:
    """What `weights` names on the Hub; None for a path, or for anything that is here."""
    if isinstance(weights, Path) or Path(weights).exists():
        return None
    match = _NAME.fullmatch(weights)
    if match is None or (match[4] is None and weights.endswith(_SUFFIXES)):
        return None
    return HubName(match[2], "dataset" if match[1] else "model", match[3], match[4])


def fetch(name: HubName, file: str) -> Path:
    """The path of `file` from the repository, downloaded at first and from the Hub's cache later.

    Raises:
        ValueError: the repository is gated, absent or private, has no such file, or the Hub cannot be reached: each
            with the way out.
    """
    from huggingface_hub import errors, hf_hub_download

    local = f"{name} is no file or folder here, and"
    try:
        return Path(hf_hub_download(name.repository, file, repo_type=name.kind, revision=name.revision))
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{name} is gated and this machine has no access to it: accept its terms at {name.address} and log in with "
            "`hf auth login`, or give a folder that holds its weights"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{local} {name.address} does not exist or is private: correct the name, or log in with `hf auth login`"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError) as error:
        raise ValueError(
            f"{local} the Hub cannot be reached for {file} ({type(error).__name__}), which is not in its cache either: "
            f"download it from {name.address} elsewhere and give its path"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ValueError(
            f"{name.address} has no {file}: name one of its files as {name}:FILE, or give a folder that `vol3d "
            "convert` wrote"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{local} the Hub refuses {file} of {name.address}: {first}") from error
