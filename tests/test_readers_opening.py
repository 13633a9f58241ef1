"""Naming a data set: the reader by name or by layout, and what is said when it is another one's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.benchmarks.readers import ROWS, WRITERS, memory
from distill.cli import main
from distill.errors import DataError
from distill.readers import READERS, open_data
from distill.scenes import SceneSet
from distill.source import SceneSource
from distill.views import ViewPolicy
from tests.fixtures import (
    write_childplay,
    write_coco,
    write_folder,
    write_gazefollow,
    write_gazefollow_json,
    write_goo,
    write_vat,
)


def test_the_layout_names_the_reader(tmp_path: Path) -> None:
    assert open_data(write_gazefollow(tmp_path / "g")).reader == "gazefollow"
    assert open_data(write_gazefollow_json(tmp_path / "j")).reader == "gazefollow"
    assert open_data(write_vat(tmp_path / "v")).reader == "vat"
    assert open_data(str(write_folder(tmp_path / "f"))).reader == "folder"


LAYOUTS = {
    "gazefollow": write_gazefollow, "gazefollow json": write_gazefollow_json, "vat": write_vat, "childplay": write_childplay, "goo": write_goo,
    "goo json": lambda root: write_goo(root, form="json"), "folder": write_folder, "folder coco": write_coco,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_data_set_under_any_other_reader_is_recognised(tmp_path: Path, layout: str) -> None:
    root = LAYOUTS[layout](tmp_path / "data")
    own = layout.partition(" ")[0]
    assert open_data(root, "train").reader == own
    for name, reader in READERS.items():
        if name == own:
            assert len(open_data(f"{name}:{root}", "train"))
        else:
            for split in reader.splits:
                with pytest.raises(DataError, match=f"{root} is not .*: it looks like .*; write {own}:{root} instead"):
                    open_data(f"{name}:{root}", split)


def test_layouts_that_are_not_read_say_what_to_get(tmp_path: Path) -> None:
    old, prepared = tmp_path / "old", tmp_path / "prepared"
    for folder in (old, prepared):
        folder.mkdir()
    (old / "train_annotations.txt").write_text("x")
    (prepared / "train_preprocessed.json").write_text('[{"path": "images/A/1_2", "width": 64, "height": 48, "frames": [{"path": "a", "heads": []}]}]')
    for name in ("", *(f"{reader}:" for reader in READERS)):
        with pytest.raises(DataError, match=r"2015 release.*get the extended release"):
            open_data(f"{name}{old}")
        with pytest.raises(DataError, match=rf"train_preprocessed.json is VideoAttentionTarget as Gaze-LLE prepares it; .* write vat:{prepared}"):
            open_data(f"{name}{prepared}")


def test_a_file_leads_to_its_data_set(tmp_path: Path) -> None:
    write_childplay(tmp_path / "c")
    file = next((tmp_path / "c/annotations/train").iterdir())
    for spec in (str(file), f"vat:{file}"):
        with pytest.raises(DataError, match=f"is a file, and a data set is a folder; write childplay:{tmp_path}/c"):
            open_data(spec)
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(DataError, match="give the folder that holds the annotations"):
        open_data(tmp_path / "x.csv")


def test_wrong_reader_unknown_reader_unknown_split(tmp_path: Path) -> None:
    write_vat(tmp_path / "v")
    write_gazefollow(tmp_path / "g", 2)
    with pytest.raises(DataError, match=f"looks like VideoAttentionTarget; write vat:{tmp_path}/v"):
        open_data(f"gazefollow:{tmp_path}/v")
    with pytest.raises(DataError, match=f"looks like GazeFollow.*write gazefollow:{tmp_path}/g"):
        open_data(f"vat:{tmp_path}/g")
    with pytest.raises(DataError, match=f"looks like GazeFollow.*write gazefollow:{tmp_path}/g"):
        open_data(f"folder:{tmp_path}/g")
    with pytest.raises(DataError, match=f"is no data set itself, but .* write gazefollow:{tmp_path}/g"):
        open_data(tmp_path)
    with pytest.raises(DataError, match=f"holds no VideoAttentionTarget, but .* write vat:{tmp_path}/v"):
        open_data(f"vat:{tmp_path}")
    with pytest.raises(DataError, match="unknown reader 'gazefolow'; did you mean 'gazefollow'"):
        open_data(f"gazefolow:{tmp_path}/g")
    with pytest.raises(DataError, match="has no split 'valid'; choose one of train, val"):
        open_data(f"gazefollow:{tmp_path}/g", "valid")
    with pytest.raises(DataError, match="knows no option 'heads'"):
        open_data(f"gazefollow:{tmp_path}/g?heads=x.csv")
    with pytest.raises(DataError, match="does not exist"):
        open_data(f"gazefollow:{tmp_path}/nowhere")
    with pytest.raises(DataError, match="does not exist"):
        open_data(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no annotations of a known layout"):
        open_data(tmp_path / "empty")


@pytest.mark.parametrize("layout", ["vat", "childplay", "goo", "gazefollow"])
def test_one_cache_of_the_training_files_serves_training_and_validation(tmp_path: Path, layout: str) -> None:
    root = LAYOUTS[layout](tmp_path)
    parts = {split: SceneSource(open_data(root, split), ViewPolicy()) for split in ("train", "val", "trainval")}
    assert parts["train"].identity == parts["val"].identity == parts["trainval"].identity
    assert set(parts["train"].keys) <= set(parts["trainval"].keys) and not set(parts["train"].keys) & set(parts["val"].keys)
    # Of a video whose training takes every sixth frame the other frames of val are built by name.
    assert set(parts["val"].keys) <= set(parts["trainval"].keys) or parts["val"].split == "val"


@pytest.mark.parametrize(("name", "most"), [("gazefollow", 1000), ("gazefollow-json", 3000), ("vat", 900), ("childplay", 700)])
def test_annotations_are_read_in_bounded_memory(tmp_path: Path, name: str, most: int) -> None:
    rows = WRITERS[name](tmp_path / name, 3000)
    held, peak = memory(f"{name.removesuffix('-json')}:{tmp_path}/{name}")
    assert held <= peak and peak / rows < most


def test_what_the_interpreter_itself_takes_meanwhile_is_not_the_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["gazefollow"](tmp_path / "g", 300)
    alone = memory(f"gazefollow:{tmp_path}/g")
    kept: list[bytes] = []

    def opened(*words: str) -> SceneSet:
        if not kept:
            kept.append(bytes(8_000_000))  # as when the table of interned strings doubles
        return open_data(*words)

    monkeypatch.setattr("distill.readers.open_data", opened)
    held, peak = memory(f"gazefollow:{tmp_path}/g")
    assert kept and held <= 1.1 * alone[0] and peak <= 1.1 * alone[1]


def test_bench_readers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "gazefollow", 2000)
    monkeypatch.setitem(ROWS, "gazefollow-json", 3000)
    monkeypatch.setitem(ROWS, "vat", 2000)
    monkeypatch.setitem(ROWS, "childplay", 6000)
    assert main(["bench", "readers", "--quick", "--repeats", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["readers"]
    assert {name: entry["rows"] for name, entry in facts.items()} == {"gazefollow": 200, "gazefollow-json": 300, "vat": 200, "childplay": 600}
    assert facts["gazefollow"]["bar_s"] == 0.3 and facts["childplay"]["bar_s"] is None
    assert main(["bench", "readers", "--repeats", "0"]) == 2
