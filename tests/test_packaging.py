"""The wheel holds every folder and file; the package works from a wheel and from a plain checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BESIDE = ("encoders", "tasks", "recipes")
CHECK = """
import json, os, sys
import vol3d, vol3d.encoders, vol3d.tasks, vol3d.recipes, vol3d.cli
from importlib.resources import files
assert vol3d.encoders.ViT3D.__module__ == "vol3d.encoders.vit3d"
assert vol3d.tasks.ReportGeneration.__module__ == "vol3d.tasks.report_generation"
assert {"vit3d-tiny"} <= set(vol3d.encoders.names())
recipes = sorted(p.name for p in files("vol3d.recipes").iterdir() if p.name.endswith(".yaml"))
pages = sorted(p.name for p in files("vol3d.evaluation").iterdir() if p.name.endswith(".html"))
print(json.dumps({"at": os.path.dirname(vol3d.__file__), "recipes": recipes, "pages": pages}))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Output of a command that must succeed, in an environment that knows of no other vol3d."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "COV_"))}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**clean, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files a clone would have, links kept, without what was built here before."""
    target = tmp_path_factory.mktemp("checkout")
    for name in ("vol3d", *BESIDE):
        junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=junk)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


def sources(checkout: Path) -> set[str]:
    """Names the package's files have when it is installed."""
    found = set()
    for folder in ("vol3d", *BESIDE):
        for path in (checkout / folder).rglob("*"):
            inside = path.relative_to(checkout / folder).parts
            if not path.is_file() or (folder == "vol3d" and inside[0] in BESIDE) or "__pycache__" in inside:
                continue
            found.add("/".join(["vol3d", *([] if folder == "vol3d" else [folder]), *inside]))
    return found


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    """Built offline, with the setuptools of this environment, from a copy so that no stale build/ gets in."""
    copy = checkout.with_name(checkout.name + "-build")
    shutil.copytree(checkout, copy, symlinks=True)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "dist", copy, cwd=copy)
    (built,) = (copy / "dist").glob("vol3d-*.whl")
    return built


def parent_site_packages() -> str:
    """Where this environment's other packages are, for an environment that must not install them again."""
    return sysconfig.get_paths()["purelib"]


@pytest.mark.slow
def test_the_wheel_holds_every_file(wheel: Path, checkout: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    wanted = sources(checkout)
    assert {"vol3d/recipes/quickstart.yaml", "vol3d/encoders/vit3d.py", "vol3d/evaluation/page.html"} <= wanted
    assert packed == wanted, f"missing: {sorted(wanted - packed)}, too many: {sorted(packed - wanted)}"


@pytest.mark.slow
def test_the_wheel_works_in_a_new_environment(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "new", cwd=tmp_path)
    python = tmp_path / "new" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=tmp_path).strip()
    # The present packages behind the new environment's own, so that nothing is downloaded and its vol3d comes first.
    (Path(own) / "behind.pth").write_text(parent_site_packages() + "\n")
    out = run(python, "-c", CHECK, cwd=tmp_path)
    assert f'"at": "{own}/vol3d"' in out
    assert "quickstart.yaml" in out
    assert "page.html" in out
    help_ = run(tmp_path / "new" / "bin" / "vol3d", "--help", cwd=tmp_path)
    assert "demo" in help_


@pytest.mark.slow
def test_a_plain_checkout_works_without_being_installed(checkout: Path) -> None:
    out = run(sys.executable, "-c", CHECK, cwd=checkout)
    assert f'"at": "{checkout}/vol3d"' in out
    assert "page.html" in out


@pytest.mark.parametrize("folder", BESIDE)
def test_the_bare_folders_refuse_to_be_imported(folder: str) -> None:
    code = f"import {folder}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ImportError: import vol3d.{folder}, not the folder {folder}" in done.stderr


@pytest.mark.parametrize("folder", BESIDE)
def test_the_links_are_links(folder: str) -> None:
    assert (ROOT / "vol3d" / folder).is_symlink()
    assert (ROOT / "vol3d" / folder).resolve() == ROOT / folder


def test_the_versions_agree() -> None:
    import tomllib

    import vol3d

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == vol3d.__version__
    assert f"version: {vol3d.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"[{vol3d.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_a_missing_optional_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    import vol3d

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r"need pyarrow: pip install 'vol3d\[parquet\]'"):
        vol3d.Manifest.read(tmp_path / "manifest.parquet")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else found(name, *rest))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ImportError, match=r"model\.gguf needs the package gguf: pip install 'vol3d\[gguf\]'"):
        vol3d.LanguageModel.pretrained(str(tmp_path), gguf_file="model.gguf")


def test_constraints_pin_what_the_project_asks_for() -> None:
    import re
    import tomllib

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    wanted = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", text).group()).lower() for text in asked}
    assert wanted <= names, wanted - names
    assert pins["torch"] == "2.13.0"
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "triton"))]
    assert not [line for line in lines if "://" in line or line.startswith("-")]
