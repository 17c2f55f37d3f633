"""The house's rules, read from the source: who knows whom, one door a dependency, docstrings, no machine's paths."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BESIDE = ("encoders", "tasks", "recipes")

# Who may know whom. A room may always know itself and vol3d.types. Wider than the plan in four places: a task sees the
# data's Study and the shared model it stands around (the interfaces name that model in annotations), encoders share
# the position codes with the projectors and write weights as all rooms do, and model.inference reads a volume and
# samples a study through data.
ROOMS = {
    "vol3d.types": (),
    "vol3d.volume.geometry": (),
    "vol3d.volume": (),
    "vol3d.text": (),
    "vol3d.phantom": ("vol3d.volume", "vol3d.text"),
    "vol3d.data": ("vol3d.volume", "vol3d.text"),
    "vol3d.model.interfaces": (
        *("vol3d.volume.geometry", "vol3d.data.batch", "vol3d.data.study", "vol3d.model.volume_lm"),
    ),
    "vol3d.encoders": (
        *("vol3d.model.interfaces", "vol3d.model.positions", "vol3d.model.rebuilding"),
        *("vol3d.volume.geometry", "vol3d.volume.atomic"),
    ),
    "vol3d.model": ("vol3d.text", "vol3d.volume", "vol3d.data"),
    "vol3d.tasks": (
        *("vol3d.model", "vol3d.data.batch", "vol3d.data.study", "vol3d.data.questions", "vol3d.text"),
        *("vol3d.volume.runs", "vol3d.training.losses", "vol3d.training.contrastive", "vol3d.evaluation.metrics"),
    ),
    "vol3d.training": ("vol3d.model", "vol3d.data", "vol3d.volume", "vol3d.text"),
    "vol3d.evaluation.metrics": ("vol3d.evaluation.intervals", "vol3d.text"),
    "vol3d.evaluation": ("vol3d.model", "vol3d.data", "vol3d.volume", "vol3d.text"),
}
ABOVE_ALL = (
    "vol3d",
    "vol3d.cli",
    "vol3d.commands",
    "vol3d.demo",
    "vol3d.info",
    "vol3d.plan",
    "vol3d.on_ray",
    "vol3d.serve",
    "vol3d.recipes",
)

# Through which files a third-party package comes in. What is not listed may be imported anywhere.
DOORS = {
    "lightning": ("vol3d.training", "vol3d.data.dataset"),
    "jsonargparse": ("vol3d.training",),
    "transformers": ("vol3d.model",),
    "tokenizers": ("vol3d.model",),
    "huggingface_hub": ("vol3d.encoders", "vol3d.model"),
    "peft": ("vol3d.model",),
    "accelerate": (),
    "monai": (
        *("vol3d.volume", "vol3d.data", "vol3d.encoders", "vol3d.model.inference", "vol3d.model.sliding"),
        "vol3d.evaluation.metrics",
    ),
    "SimpleITK": ("vol3d.volume",),
    "pydicom": ("vol3d.volume", "vol3d.data.doctor_volume"),
    "nibabel": ("vol3d.volume", "vol3d.phantom.files", "vol3d.data.importers"),
    "timm": ("vol3d.encoders",),
    "torchvision": ("vol3d.encoders",),
    "torchio": ("vol3d.data.augment",),
    "pyarrow": ("vol3d.data.formats",),
    "deepspeed": (),
    "ray": ("vol3d.on_ray",),
    "sklearn": (),
}
SLOW_TO_IMPORT = {"monai", "transformers", "peft", "tokenizers", "SimpleITK", "matplotlib", "timm", "torchio", "jinja2"}


@cache
def sources() -> dict[str, Path]:
    """Module name → file, for everything the library is made of; the links in vol3d/ are not followed."""
    found = {}
    for folder in ("vol3d", *BESIDE):
        top = "vol3d" if folder == "vol3d" else f"vol3d.{folder}"
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "vol3d" and parts[0] in BESIDE:
                continue
            found[".".join([top, *parts]).removesuffix(".__init__")] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(sources()[module].read_text(encoding="utf-8"))


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def imports(node: ast.AST, *, outside_functions: bool = False) -> Iterator[str]:
    """Full names of what is imported under `node`: packages, modules, and the names taken from them."""
    for child in ast.iter_child_nodes(node):
        if outside_functions and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if outside_functions and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import of {child.module}: imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imports(child, outside_functions=outside_functions)


def room_of(module: str) -> str | None:
    """The narrowest room `module` stands in."""
    return max((room for room in ROOMS if inside(module, room)), key=len, default=None)


def test_the_reader_of_imports_sees_them() -> None:
    code = "import a.b\nfrom vol3d.x import y\ndef f():\n    from c import d\n"
    assert list(imports(ast.parse(code))) == ["a.b", "vol3d.x.y", "c.d"]
    assert list(imports(ast.parse(code), outside_functions=True)) == ["a.b", "vol3d.x.y"]
    assert room_of("vol3d.model.interfaces") == "vol3d.model.interfaces"
    assert room_of("vol3d.model.language") == "vol3d.model"
    assert {"vol3d", "vol3d.cli", "vol3d.encoders.vit3d", "vol3d.tasks"} <= sources().keys()


def test_every_module_stands_in_a_room() -> None:
    assert [module for module in sources() if room_of(module) is None and not _above(module)] == []


def _above(module: str) -> bool:
    return module == "vol3d" or any(inside(module, room) for room in ABOVE_ALL if room != "vol3d")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_only_whom_it_may(room: str) -> None:
    allowed = (room, "vol3d.types", "vol3d.__version__", *ROOMS[room])
    breaches = [
        f"{module} imports {name}"
        for module in sources()
        if room_of(module) == room
        for name in imports(tree(module))
        if inside(name, "vol3d") and not any(inside(name, known) for known in allowed)
    ]
    assert not breaches, "\n".join(breaches)


@pytest.mark.parametrize("package", DOORS)
def test_a_dependency_comes_in_by_its_doors(package: str) -> None:
    breaches = [
        f"{module} imports {name}"
        for module in sources()
        for name in imports(tree(module))
        if inside(name, package) and not any(inside(module, door) for door in DOORS[package])
    ]
    assert not breaches, "\n".join(breaches)


def test_slow_packages_are_imported_in_functions() -> None:
    breaches = [
        f"{module} imports {name} at its top"
        for module in sources()
        for name in imports(tree(module), outside_functions=True)
        if name.split(".")[0] in SLOW_TO_IMPORT
    ]
    assert not breaches, "\n".join(breaches)


def test_no_print_no_cuda_no_swallowed_exception() -> None:
    breaches = []
    for module in sources():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in ("print", "pprint") or called.endswith(".cuda"):
                    breaches.append(f"{module}:{node.lineno} calls {called}")
            if isinstance(node, ast.ExceptHandler) and _swallows(node):
                breaches.append(f"{module}:{node.lineno} swallows every exception")
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                breaches.append(f"{module}:{node.lineno} imports *")
    assert not breaches, "\n".join(breaches)


def _swallows(handler: ast.ExceptHandler) -> bool:
    """A bare except, or one of (Base)Exception whose body neither raises nor does anything."""
    if handler.type is None:
        return True
    broad = {name.id for name in ast.walk(handler.type) if isinstance(name, ast.Name)} & {"Exception", "BaseException"}
    return bool(broad) and all(isinstance(line, (ast.Pass, ast.Continue)) for line in handler.body)


def test_public_names_have_docstrings() -> None:
    bare = []
    for module in sources():
        if tree(module).body and not ast.get_docstring(tree(module)):
            bare.append(module)
        for node in tree(module).body:
            kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node):
                bare.append(f"{module}.{node.name}")
    assert not bare, f"{len(bare)} public names without a docstring: {', '.join(bare)}"


def test_every_public_name_can_be_imported() -> None:
    import vol3d

    assert [name for name in vol3d.__all__ if not getattr(vol3d, name).__doc__] == []
    with pytest.raises(AttributeError, match=r"no attribute 'reed'; public names: .*read"):
        vol3d.reed  # noqa: B018


HELP = "from vol3d.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"


@pytest.mark.parametrize("code", ["import vol3d", HELP], ids=["import", "help"])
def test_neither_the_package_nor_its_help_loads_a_framework(code: str) -> None:
    heavy = {"torch", "monai", "lightning", "transformers", "numpy"}
    code += f"\nimport sys\nsys.exit(' '.join({heavy} & {{*sys.modules}}) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"loaded: {done.stderr}"


def test_files_stay_short() -> None:
    long = {module: lines for module, path in sources().items() if (lines := len(path.read_text().splitlines())) > 400}
    assert not long, f"split these, 300 lines is the aim: {long}"


PATH = re.compile(r"(?<![\w.~$}/-])/(?:work|root|home|Users|tmp|mnt|data|opt)/[\w.-]")


def test_the_path_pattern_finds_paths() -> None:
    assert PATH.search('open("/ho' + 'me/me/x.nii")')
    assert not PATH.search("https://example.org/home/x and runs/tmp/x")


def test_no_machine_paths_in_tracked_files() -> None:
    found = []
    for path in _tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {line.strip()[:100]}" for line in text.splitlines() if PATH.search(line)]
    assert not found, "\n".join(found)


def _tracked() -> list[Path]:
    """What git has, and what it would add; every file where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    if done.returncode == 0 and done.stdout:
        paths = [ROOT / os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    else:
        paths = [path for folder in (*BESIDE, "vol3d", "tests", "examples") for path in (ROOT / folder).rglob("*.*")]
    return [path for path in paths if path.is_file() and not path.is_symlink()]
