"""The page on data sets names every defect that the code can find, every reader and every array of a predictions file."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import distill.predictions
from distill.readers import READERS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/data.md").read_text(encoding="utf-8")


def _defects() -> set[str]:
    """The names given to ``findings.add`` and ``Finding``, up to a part that varies."""
    names = set()
    for path in [*sorted((ROOT / "distill/readers").glob("*.py")), ROOT / "distill/datacheck.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            adds = isinstance(node.func, ast.Attribute) and node.func.attr == "add" and ast.unparse(node.func.value) == "findings"
            makes = isinstance(node.func, ast.Name) and node.func.id == "Finding"
            first = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            if (adds or makes) and isinstance(first, ast.Constant):
                names.add(str(first.value).split(" (")[0])
    return names


def test_every_defect_is_on_the_page() -> None:
    names = _defects()
    assert len(names) > 15 and "reversed box" in names and "no gaze target" in names
    rows = " ".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| "))
    assert [name for name in sorted(names) if name not in rows] == []


def test_pictures_that_cannot_be_opened_are_on_the_page() -> None:
    source = (ROOT / "distill/datacheck.py").read_text()
    said = set(re.findall(r'return "picture (\w+)"', source))
    assert said == {"missing", "unreadable", "corrupt"} and "picture missing, unreadable, corrupt" in PAGE


def test_every_reader_and_array_is_on_the_page() -> None:
    assert [name for name in READERS if f"| `{name}:` |" not in PAGE] == []
    arrays = re.findall(r"^``(\w+)(?: \[.*\])?``", str(distill.predictions.__doc__), re.MULTILINE)
    assert arrays == ["scene", "box", "heatmap", "inout", "model"]
    assert [name for name in arrays if f"| `{name}` |" not in PAGE] == []
