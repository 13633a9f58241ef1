"""Picture sizes: seen once, remembered while the file is the same, forgotten when it is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

import distill.datastats
from distill.datacheck import check_data
from distill.datastats import data_stats
from distill.picture_sizes import SizeMemory, memory_file
from distill.pictures import picture_size
from distill.readers import open_data
from tests.fixtures import SIZE, write_gazefollow


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GAZE_DISTILL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_size_is_remembered_while_the_file_is_the_same(tmp_path: Path, home: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (40, 30)).save(picture)
    with SizeMemory(tmp_path) as sizes:
        assert sizes.get(picture) is None
        sizes[picture] = (40, 30)
    assert [path.parent.name for path in home.rglob("*.json")] == ["picture-sizes"]
    assert SizeMemory(tmp_path).get(picture) == (40, 30)
    assert SizeMemory(tmp_path, upright=True).get(picture) is None
    Image.new("RGB", (20, 10)).save(picture)
    os.utime(picture, ns=(1, 1))
    assert SizeMemory(tmp_path).get(picture, "unknown") == "unknown"
    picture.unlink()
    assert SizeMemory(tmp_path).get(picture) is None


def test_a_second_look_opens_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data(write_gazefollow(tmp_path / "d", 8), "trainval")
    opened: list[Path] = []

    def counting(path: Path, *, exif: bool = False) -> tuple[int, int]:
        opened.append(path)
        return picture_size(path, exif=exif)

    monkeypatch.setattr(distill.datastats, "picture_size", counting)
    first = data_stats(data)
    assert len(opened) == 8
    assert data_stats(data) == first and len(opened) == 8
    (tmp_path / "d/train/00000000/00000001.jpg").write_bytes(b"other")
    assert data_stats(data).unreadable == 1 and len(opened) == 9


def test_the_check_leaves_the_sizes_and_forgets_broken_pictures(tmp_path: Path) -> None:
    data = open_data(write_gazefollow(tmp_path / "d", 4), "trainval")
    check_data([data], baselines=False)
    pictures = [scene.picture for scene in data.scenes]
    assert [SizeMemory(data.root).get(picture) for picture in pictures] == [SIZE] * 4
    state = pictures[0].stat()
    pictures[0].write_bytes(b"x" * state.st_size)
    os.utime(pictures[0], ns=(state.st_atime_ns, state.st_mtime_ns))
    report = check_data([data])
    assert report.baselines is not None and report.baselines.heads == 4 and report.baselines.of == 5
    assert [SizeMemory(data.root).get(picture) for picture in pictures] == [None, SIZE, SIZE, SIZE]


@pytest.mark.parametrize("content", ["", "[]", '{"version": 1}', '{"version": 9, "sizes": {}}', '{"version": 1, "sizes": {"a": 3}}'])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, content: str) -> None:
    file = memory_file(tmp_path, upright=False)
    file.parent.mkdir(parents=True)
    file.write_text(content)
    picture = tmp_path / "a.png"
    Image.new("RGB", (40, 30)).save(picture)
    with SizeMemory(tmp_path) as sizes:
        assert sizes.get(picture) is None
        sizes[picture] = (40, 30)
    assert SizeMemory(tmp_path).get(picture) == (40, 30)


def test_a_home_that_cannot_be_written_to_costs_no_result(tmp_path: Path, home: Path) -> None:
    home.write_text("a file where the folder should be")
    data = open_data(write_gazefollow(tmp_path / "d", 3), "trainval")
    assert data_stats(data).scenes == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
