"""The examples and the README run as they stand; only sizes are made smaller."""

import ast
import re
import runpy
import shlex
from pathlib import Path

import pytest

import vol3d
from vol3d import cli

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
SMALLER = {"studies=800": "studies=16", "max_steps=1000": "max_steps=2", "max_new_tokens=240": "max_new_tokens=8"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(block for page in PAGES for block in blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("vol3d ")]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(
    path: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert list(here.iterdir()) == [], "an example leaves nothing where it is run"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert f"python examples/{path.name}" in ast.get_docstring(ast.parse(text))
    assert path.stem in (ROOT / "README.md").read_text() or "examples/" in (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs_from_top_to_bottom(here: Path) -> None:
    code = "\n".join(blocks("README.md", "python"))
    for large, small in SMALLER.items():
        assert large in code, f"the README no longer says {large}"
        code = code.replace(large, small)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert isinstance(names["text"], str)
    assert names["scores"]["tasks"]["report"]["finding_f1"]["value"] is not None
    assert vol3d.Geometry.of(vol3d.read_mask("bone.nii.gz")).is_close(vol3d.Geometry.of(names["volume"]))


def test_the_program_of_the_readme_is_short() -> None:
    program = blocks("README.md", "python")[0].split("\n\n", 2)[2]
    assert len([line for line in program.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_readme_is_understood(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line)[1:]
    if words[0] in cli.LIGHTNING:
        with pytest.raises(SystemExit) as left:
            cli.main([*words, "--print_config"])
        assert left.value.code == 0
    else:
        cli._parser().parse_args(words)


def test_the_readme_knows_every_command_and_no_other() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`vol3d (\w+)", text)) | set(re.findall(r"^vol3d (\w+)", text, re.MULTILINE))
    assert named <= {*cli.COMMANDS, *cli.LIGHTNING}, named - {*cli.COMMANDS, *cli.LIGHTNING}
    assert {*cli.COMMANDS} <= named, {*cli.COMMANDS} - named


def test_the_readme_starts_with_the_two_commands() -> None:
    first = (ROOT / "README.md").read_text().split("\n## ")[0]
    assert "pip install -c constraints.txt -e . && vol3d demo" in first
    assert 'pip install -c constraints.txt -e ".[test]" && pytest' in first


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_a_row_of_the_readme_is_a_row(here: Path) -> None:
    import json

    row = json.loads(blocks("README.md", "json")[0])
    (here / "ct").mkdir()
    (here / row["image"]).write_bytes(b"")
    (here / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    study = vol3d.Manifest.read("manifest.jsonl")[0]
    assert (study.study, study.patient, study.split) == ("0001", "p17", "train")
