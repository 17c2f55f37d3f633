"""Weights by Hub name: the right file is asked for, a peer's is converted, every refusal says the way out."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

import vol3d
from vol3d.encoders import convert
from vol3d.encoders.foreign import PEERS
from vol3d.encoders.hub import HubName, hub_name

SMALL: dict[str, Any] = {"layers": (1, 1, 1, 1), "width": 8, "phenotypes": 6}
TINY: dict[str, Any] = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": (4, 4, 2)}


class Hub:
    """A faked download: remembers what was asked for, gives one file or raises."""

    def __init__(self, answer: Path | Exception) -> None:
        self.answer, self.asked = answer, []

    def __call__(self, repository: str, file: str, **options: Any) -> str:
        self.asked.append((repository, file, options["repo_type"], options["revision"]))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    def answers(answer: Path | Exception) -> Hub:
        fake = Hub(answer)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake)
        return fake

    return answers


def http(kind: type[Exception]) -> Exception:
    """One of the Hub's own errors, without the request it came from."""
    error = kind.__new__(kind)
    Exception.__init__(error, "401 Client Error")
    return error


def test_what_is_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_name("stanfordmimi/Merlin") == HubName("stanfordmimi/Merlin")
    assert hub_name("org/repo@v1.0:a/b.pt") == HubName("org/repo", revision="v1.0", file="a/b.pt")
    assert hub_name("datasets/a/B:c.pt") == HubName("a/B", "dataset", file="c.pt")
    for path in (Path("org/repo"), "weights/m3d.safetensors", "merlin.pt", "./org/repo", "/org/repo", "a/b/c"):
        assert hub_name(path) is None, path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/repo").mkdir(parents=True)
    assert hub_name("org/repo") is None  # a folder that is here comes first


def test_our_own_weights_come_from_the_hub(tmp_path: Path, hub: Any) -> None:
    wanted = vol3d.encoders.create("vit3d-tiny", **TINY).state_dict()
    save_file(wanted, tmp_path / "encoder.safetensors")
    fake = hub(tmp_path / "encoder.safetensors")
    given = vol3d.encoders.create("vit3d-tiny", weights="someone/chest-vit@main", **TINY)
    torch.testing.assert_close(given.state_dict(), wanted)
    assert fake.asked == [("someone/chest-vit", "encoder.safetensors", "model", "main")]


def test_a_peers_repository_is_converted_on_the_way(tmp_path: Path, hub: Any) -> None:
    wanted = vol3d.encoders.create("merlin-5yr", **SMALL).state_dict()
    foreign = {key: value.permute(0, 1, 4, 2, 3) if value.ndim == 5 else value for key, value in wanted.items()}
    for head in ("classifier", "contrastive_head"):
        foreign[f"{head}.weight"] = foreign[f"{head}.weight"][..., None, None, None]
    torch.save(foreign, tmp_path / "five.pt")
    fake = hub(tmp_path / "five.pt")
    given = vol3d.encoders.create("merlin-5yr", weights="stanfordmimi/Merlin", **SMALL)
    torch.testing.assert_close(given.state_dict(), wanted)
    done = convert.convert("merlin-5yr", "stanfordmimi/Merlin", tmp_path / "out", **SMALL)
    again = vol3d.encoders.create("merlin-5yr", weights=done.folder, **SMALL)
    torch.testing.assert_close(again.state_dict(), wanted)
    file = "resnet_clinical_longformer_five_year_disease_prediction.pt"
    assert fake.asked == [("stanfordmimi/Merlin", file, "model", None)] * 2


def test_every_published_place_is_a_hub_name_with_a_file() -> None:
    places = {name: hub_name(peer.hub) for name, peer in PEERS.items() if peer.hub}
    assert {"m3d-clip", "merlin", "merlin-5yr", "merlin-report", "ct-clip", "segvol"} == set(places)
    assert all(place is not None and place.file for place in places.values())
    assert places["ct-clip"].kind == "dataset"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.GatedRepoError, r"a/b is gated.*accept its terms at https://huggingface.co/a/b .*hf auth login"),
        (errors.RepositoryNotFoundError, r"no file or folder here, and .*/a/b does not exist or is private"),
        (errors.RemoteEntryNotFoundError, r"/a/b has no encoder.safetensors: name one of its files as a/b:FILE"),
        (
            errors.LocalEntryNotFoundError,
            r"Hub cannot be reached for encoder.safetensors.*not in its cache.*give its path",
        ),
        (ConnectionError, r"Hub cannot be reached for encoder.safetensors \(ConnectionError\)"),
        (errors.HfHubHTTPError, r"the Hub refuses encoder.safetensors of https://huggingface.co/a/b: 401 Client Error"),
    ],
)
def test_a_refusal_says_the_way_out(error: type[Exception], said: str, hub: Any) -> None:
    hub(http(error))
    with pytest.raises(ValueError, match=said):
        vol3d.encoders.create("vit3d-tiny", weights="a/b", **TINY)


def test_offline_the_real_client_is_asked_and_its_refusal_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"stanfordmimi/Merlin is no file or folder here.*cannot be reached for i3_res"
    ):
        vol3d.encoders.create("merlin-i3d-resnet152", weights="stanfordmimi/Merlin", **SMALL)
    with pytest.raises(ValueError, match=r"name the file: me/copy:FILE \(stanfordmimi/Merlin is where it is published"):
        convert.convert("merlin", "me/copy", tmp_path / "out")
    with pytest.raises(ValueError, match=r"name the file: me/copy:FILE \(its files are split or zipped"):
        convert.convert("radfm", "me/copy", tmp_path / "out")


def test_building_asks_nobody(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = hub(AssertionError("a constructor asked the Hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a constructor opened a connection"))
    with torch.device("meta"):
        for name in set(vol3d.encoders.names()) - {"swin-unetr", "slice-vit-small", "spectre-large"}:
            vol3d.encoders.create(name)
    assert fake.asked == []
