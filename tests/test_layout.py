"""The rules of the house that a machine can check: who imports whom, what a file is called, where errors live."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import distill.errors
from distill.cli import COMMANDS

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "schedules": {"schedules"},
    "teachers": {"teachers"},
    "students": {"students", "teachers", "schedules"},
    "distill": {"distill", "students", "teachers", "schedules"},
}
# A module of one of these names holds whatever was left over.
STRAY = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "base"}
LONGEST = 450
HEAVY = {"torch", "torchvision", "timm", "accelerate", "numpy", "PIL", "safetensors", "rich", "onnx", "onnxruntime", "tensorboard"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(tree: ast.Module, path: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import, those inside functions and type-checking blocks included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                depth = len(path.relative_to(ROOT).parts) - node.level
                yield node.lineno, path.relative_to(ROOT).parts[0] if depth > 0 else ".."
            else:
                yield node.lineno, str(node.module).partition(".")[0]


def strangers(package: str, tree: ast.Module, path: Path) -> list[str]:
    ours = {*MAY_IMPORT, "tests", ".."}
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imported(tree, path)
        if name in ours and name not in MAY_IMPORT[package]
    ]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_downward(package: str) -> None:
    files = sources(package)
    assert files
    assert [edge for path in files for edge in strangers(package, ast.parse(path.read_text("utf-8")), path)] == []


@pytest.mark.parametrize(
    ("package", "code"),
    [
        ("schedules", "import teachers.model"),
        ("teachers", "def f():\n    from distill.scenes import Scene"),
        ("teachers", "from students import trainer"),
        ("students", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import distill"),
        ("students", "from .. import distill"),
        ("distill", "from tests.fixtures import SIZE"),
    ],
)
def test_an_upward_import_is_found(package: str, code: str) -> None:
    assert len(strangers(package, ast.parse(code), ROOT / package / "somewhere.py")) == 1


def test_there_are_four_packages_and_no_stray_modules() -> None:
    tops = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert tops == set(MAY_IMPORT)
    every = [path for package in MAY_IMPORT for path in sources(package)]
    assert [str(path.relative_to(ROOT)) for path in every if path.stem in STRAY or path.parent.name in STRAY] == []


def test_a_file_holds_one_concept() -> None:
    every = [path for package in (*MAY_IMPORT, "tests") for path in sources(package)]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in every}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}


def test_every_command_is_listed_and_registers_itself() -> None:
    found = {path.stem for path in (ROOT / "distill/commands").glob("*.py")} - {"__init__"}
    # A command that outgrows one file keeps its name in front: cache_info.py serves cache.py.
    parts = {name for name in found if name not in COMMANDS and name.partition("_")[0] in COMMANDS}
    assert found - parts == set(COMMANDS)
    for name in COMMANDS:
        assert callable(importlib.import_module(f"distill.commands.{name}").register), name


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; import distill.cli; distill.cli.build_parser().format_help(); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "distill.cli" in modules
    assert modules & HEAVY == set()


def drawn_errors() -> dict[str, str]:
    """The tree in the docstring of ``distill/errors.py``: dotted name of each error to that of the one above it."""
    above: list[tuple[int, str]] = []
    drawn: dict[str, str] = {}
    for line in str(distill.errors.__doc__).splitlines():
        match = re.match(r"    ([│ ├└─]*)([A-Za-z_.]*Error)\b", line)
        if match:
            while above and above[-1][0] >= len(match[1]):
                above.pop()
            if match[1]:
                drawn[match[2]] = above[-1][1]
            above.append((len(match[1]), match[2]))
    return drawn


def mendable_errors() -> dict[str, str]:
    """Every exception class with the mark, and its base, both by dotted name (builtins by their name alone)."""
    found: dict[str, str] = {}
    for package in MAY_IMPORT:
        for path in sources(package):
            if path.stem == "errors":
                module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
                for name, kind in vars(module).items():
                    if isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__ == module.__name__:
                        assert getattr(kind, "mendable", False) is True, f"{module.__name__}.{name} is not marked mendable"
                        base = kind.__bases__[0]
                        prefix = "" if base.__module__ == "builtins" else f"{base.__module__}."
                        found[f"{module.__name__}.{name}"] = f"{prefix}{base.__name__}"
    return found


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    assert drawn_errors() == mendable_errors()


def test_errors_live_in_errors_modules() -> None:
    elsewhere = []
    for package in MAY_IMPORT:
        for path in sources(package):
            if path.stem == "errors":
                continue
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [base.id for base in getattr(node, "bases", []) if isinstance(base, ast.Name)]
                if isinstance(node, ast.ClassDef) and any(name.endswith(("Error", "Exception")) for name in names):
                    elsewhere.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert elsewhere == []


def test_no_handler_catches_everything_in_silence() -> None:
    silent = []
    for package in MAY_IMPORT:
        for path in sources(package):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ExceptHandler):
                    bare = node.type is None
                    wide = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
                    if bare or (wide and all(isinstance(line, ast.Pass | ast.Continue) for line in node.body)):
                        silent.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert silent == []


def test_the_distribution_is_what_the_documentation_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"distill": "distill.cli:main"}
    assert project["requires-python"] == ">=3.11"
    assert not [line for line in project["dependencies"] if line.startswith("torch") and "==" in line]
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert f"## {distill.__version__}" in (ROOT / "CHANGELOG.md").read_text()
