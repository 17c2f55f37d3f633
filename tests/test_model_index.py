"""The index: exact search equals brute force with and without faiss, a graph comes near it, folders and refusals."""

import importlib.util
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from world import FINDINGS, study

import vol3d
from vol3d.cli import main
from vol3d.model import index as module
from vol3d.model.index import VolumeIndex, embed, search
from vol3d.model.pretrained import save
from vol3d.model.volume_lm import VolumeLM
from vol3d.tasks import ReportGeneration, Retrieval
from vol3d.volume.grid import Grid

needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
GRID = Grid(spacing=(4.0, 4.0, 8.0), shape=(16, 16, 8), window=(-300, 300))


def vectors(count: int = 500, dim: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def rows(count: int = 500) -> list[dict[str, str]]:
    return [{"study": f"s{number}", "image": f"s{number}.nii.gz"} for number in range(count)]


def brute(table: np.ndarray, query: np.ndarray, k: int) -> list[str]:
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    return [f"s{number}" for number in np.argsort(-(unit @ query))[:k]]


@pytest.mark.parametrize("with_faiss", [pytest.param(True, marks=needs_faiss), False])
def test_exact_search_is_brute_force_and_survives_the_disk(
    with_faiss: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_faiss:
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    table, query = vectors(), vectors(1, seed=5)[0]
    built = VolumeIndex.build(table, rows())
    assert (built.kind, len(built), built.dim) == ("exact", 500, 12)
    assert isinstance(built.searcher, module._Flat) != with_faiss
    built.save(tmp_path / "index")
    for index in (built, VolumeIndex.load(tmp_path / "index")):
        hits = index.search(query, 7)
        assert [hit["study"] for hit in hits] == brute(table, query, 7)
        assert hits[0]["image"] == f"{hits[0]['study']}.nii.gz"
        cosine = table[int(hits[0]["study"][1:])] @ query / np.linalg.norm(query)
        assert hits[0]["score"] == pytest.approx(cosine / np.linalg.norm(table[int(hits[0]["study"][1:])]), abs=1e-5)
    assert len(built.search(query, 1000)) == 500


@needs_faiss
def test_a_graph_comes_near_brute_force(tmp_path: Path) -> None:
    table = vectors(2000)
    VolumeIndex.build(table, rows(2000), kind="hnsw").save(tmp_path / "index")
    index = VolumeIndex.load(tmp_path / "index")
    queries = vectors(20, seed=9)
    shared = [len({hit["study"] for hit in index.search(query, 10)} & {*brute(table, query, 10)}) for query in queries]
    assert sum(shared) / 200 > 0.95


def test_the_kind_follows_the_number_of_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_UP_TO", 10)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert VolumeIndex.build(vectors(10), rows(10)).kind == "exact"
    with pytest.raises(ImportError, match=r"'hnsw' needs faiss: pip install 'vol3d\[search\]'"):
        VolumeIndex.build(vectors(11), rows(11))


def test_what_cannot_be_indexed_or_asked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 vectors, 2 studies"):
        VolumeIndex.build(vectors(3), rows(2))
    with pytest.raises(ValueError, match=r"0 vectors, 0 studies"):
        VolumeIndex.build(vectors(0), [])
    bad = vectors(3)
    bad[1] = 0
    with pytest.raises(ValueError, match=r"study 's1' is zero or not finite \(1 of 3 are\)"):
        VolumeIndex.build(bad, rows(3))
    index = VolumeIndex.build(vectors(3), rows(3))
    with pytest.raises(ValueError, match=r"query has 5 numbers and k is 1, the index holds 12"):
        index.search(np.ones(5), 1)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(ValueError, match="exists and is no index"):
        index.save(tmp_path / "thesis")
    with pytest.raises(ValueError, match="exists and is no index"):
        embed("model", "manifest.jsonl", tmp_path / "thesis")  # before either is read
    assert (tmp_path / "thesis" / "chapter1.txt").exists()
    with pytest.raises(ValueError, match=r"is no index: it has no index.json; make one with `vol3d embed"):
        VolumeIndex.load(tmp_path / "thesis")


# --- with a model -------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    from monai.data import MetaTensor

    lines = []
    for number in range(4):
        hu = study(number).hu.float()
        hu[:, :, :3] = -1000  # air, without which a reader doubts that these are HU
        affine = torch.diag(torch.tensor([4.0, 4.0, 8.0, 1.0], dtype=torch.float64))
        vol3d.write(MetaTensor(hu, affine=affine), tmp_path / f"s{number}.nii.gz")
        lines.append(json.dumps({"study": f"s{number}", "image": f"s{number}.nii.gz", "report": "Normal."}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "manifest.jsonl"


def model(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    whole = VolumeLM(vol3d.encoders.create("vit3d-tiny", embed_dim=24, depth=1, num_heads=2, patch_size=(4, 4, 2)))
    task = Retrieval(whole, embed_dim=16, queries=2, text_encoder={"embed_dim": 16, "depth": 1, "num_heads": 2})
    return save(folder, whole, {"retrieval": task}, GRID)


def test_a_manifest_is_embedded_and_found_again_by_image_and_words(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model(tmp_path / "model")
    index = embed(folder, data, tmp_path / "index", batch_size=3)
    assert (len(index), index.dim, index.model) == (4, 16, str(folder.resolve()))
    first = search(tmp_path / "index", tmp_path / "s2.nii.gz", 2)
    assert first[0] == {"study": "s2", "score": pytest.approx(1, abs=1e-4), "image": str(tmp_path / "s2.nii.gz")}
    words = search(tmp_path / "index", "There is a left pleural effusion.", 4)
    vector = vol3d.load(folder).embed_text("There is a left pleural effusion.").numpy()
    assert words == index.search(vector, 4)
    assert len({hit["score"] for hit in words}) == 4, "the volumes differ, and so do their vectors"
    assert main(["search", str(tmp_path / "index"), "ascites", "-k", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 2
    # The same values without air are no HU until the user says so.
    whole = vol3d.read(tmp_path / "s2.nii.gz")
    vol3d.write(whole.clamp(-150, 400), tmp_path / "crop.nii.gz")
    asked = ["search", str(tmp_path / "index"), str(tmp_path / "crop.nii.gz"), "--json"]
    assert main(asked) == 2
    assert 'vouch with --modality "CT"' in capsys.readouterr().err
    assert main([*asked, "--modality", "CT"]) == 0
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 4


def test_an_mr_scan_is_searched_for_as_it_was_indexed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row says `meta.modality`; who asks with a file says `--modality`."""
    from monai.data import MetaTensor

    affine = torch.diag(torch.tensor([4.0, 4.0, 8.0, 1.0], dtype=torch.float64))
    vol3d.write(MetaTensor(study(7).hu.float().abs() + 300, affine=affine), tmp_path / "mr.nii.gz")
    row = {"study": "mr", "image": "mr.nii.gz", "meta": {"modality": "MR"}}
    data.write_text(data.read_text() + json.dumps(row) + "\n")
    embed(model(tmp_path / "model"), data, tmp_path / "index")
    asked = ["search", str(tmp_path / "index"), str(tmp_path / "mr.nii.gz"), "-k", "1", "--json"]
    assert main(asked) == 2
    capsys.readouterr()
    assert main([*asked, "--modality", "MR"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)["hits"]
    assert (hit["study"], hit["score"]) == ("mr", pytest.approx(1, abs=1e-4))
    assert main(["search", str(tmp_path / "index"), "ascites", "--modality", "MR"]) == 2
    assert "'ascites' is no file or folder, and --modality says how one is read" in capsys.readouterr().err


def test_volumes_are_read_ahead_by_other_processes_and_kept(data: Path, tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    plain = embed(folder, data, tmp_path / "plain", batch_size=3)
    cache = tmp_path / "cache"
    asked = ["embed", folder, data, "-o", tmp_path / "ahead", "--workers", 2, "--cache", cache, "--batch-size", 3]
    assert main([str(word) for word in asked]) == 0
    both = [search(tmp_path / name, "There is a left pleural effusion.", 4) for name in ("plain", "ahead")]
    assert both[0] == both[1]
    assert len(list(cache.rglob("*.safetensors"))) == len(plain) == 4
    (tmp_path / "s1.nii.gz").write_bytes(b"no longer an image")
    with pytest.raises(ValueError, match=r"^study 's1': .*s1\.nii\.gz"):  # one line, though another process read it
        embed(vol3d.load(folder, cache=cache), data, tmp_path / "broken", workers=2)
    assert not (tmp_path / "broken").exists()


def test_one_volume_or_a_batch_give_one_vector(data: Path, tmp_path: Path) -> None:
    trained = vol3d.load(model(tmp_path / "model"))
    one = trained.embed(tmp_path / "s1.nii.gz")
    features, _ = trained._see(*(trained.sample(tmp_path / f"s{number}.nii.gz") for number in range(4)))
    batch = trained.tasks["retrieval"].embed_volume(trained.model, features)
    torch.testing.assert_close(batch[1], one, atol=1e-5, rtol=1e-5)
    assert float(one.norm()) == pytest.approx(1, abs=1e-5)


def test_an_index_refuses_another_model_and_an_image_that_is_not_there(data: Path, tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    embed(folder, data, tmp_path / "index")
    with pytest.raises(ValueError, match=r"nowhere.nii.gz: no such file"):
        search(tmp_path / "index", "nowhere.nii.gz")
    with pytest.raises(ValueError, match="the query is empty: give a volume's path, or words"):
        search(tmp_path / "index", "")  # as a path, the folder one stands in
    model(tmp_path / "model", seed=1)
    with pytest.raises(ValueError, match=r"has other weights than .*index was made with: run `vol3d embed` again"):
        search(tmp_path / "index", "ascites")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"made with the model .*model, which is not there"):
        search(tmp_path / "index", "ascites")


def test_a_model_without_retrieval_embeds_nothing(data: Path, tmp_path: Path) -> None:
    whole = VolumeLM(
        vol3d.encoders.create("vit3d-tiny", embed_dim=24, depth=1, num_heads=2, patch_size=(4, 4, 2)),
        partial(vol3d.PerceiverProjector, num_latents=2, num_heads=2),
        vol3d.LanguageModel.scratch(FINDINGS, embed_dim=16, depth=1, num_heads=2, vocab_size=300),
    )
    save(tmp_path / "model", whole, {"report": ReportGeneration(whole)}, GRID)
    with pytest.raises(ValueError, match=r"was not trained for 'retrieval'; it predicts report"):
        embed(tmp_path / "model", data, tmp_path / "index")
