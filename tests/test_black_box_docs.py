"""The page on black boxes says what is so: its example runs, its adapter loads, its table is the built-in adapters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from teachers.adapter import BUILT_IN, PARTS, read_adapter
from teachers.cache.reader import CacheReader
from teachers.cache.verify import verify_rows
from tests.fixtures import write_folder

PAGE = (Path(__file__).parents[1] / "docs/black-box-teachers.md").read_text("utf-8")


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_the_example_builds_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "pictures")
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(block("python"), "black-box-teachers.md", "exec"), names)
    assert capsys.readouterr().out == "8 rows, complete\n"
    reader = CacheReader(tmp_path / "caches/below")
    assert verify_rows(reader, names["BelowTheFace"](), names["source"], rows=8).ok  # type: ignore[operator,arg-type]
    cached = reader.read(names["source"].keys[0], 0)  # type: ignore[attr-defined]
    # The first head's box is (6, 8, 22, 26) of 64 x 48 pixels: half its height below it is (14, 35), in cell (11, 3) of 16 x 16.
    assert divmod(int(cached.heatmap[0].argmax()), 16) == (11, 3)


def test_the_adapter_shown_is_one(tmp_path: Path) -> None:
    (tmp_path / "shown.toml").write_text(block("toml"))
    adapter = read_adapter(tmp_path / "shown.toml")
    assert adapter.image.size == (448, 448) and adapter.image.mean == (0.485, 0.456, 0.406) and adapter.inout is not None
    # Every key that there is is explained.
    for section, kind in PARTS.items():
        text = block("toml").partition(f"[{section}]")[2].partition("\n[")[0]
        assert [name for name in kind.__dataclass_fields__ if not re.search(rf"^#?{name} = ", text, re.MULTILINE)] == []


def test_the_built_in_adapters_are_listed() -> None:
    for name, adapter in BUILT_IN.items():
        line = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` "))
        assert all(f"`{each}`" in line for each in (*adapter.inputs, *adapter.outputs))
