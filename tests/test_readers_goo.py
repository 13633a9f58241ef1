"""GOO-Real's reader: its units, its two forms, and pickles that would do harm."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.errors import DataError
from distill.readers import open_data, open_splits
from distill.readers.restricted_pickle import load_restricted
from distill.scenes import IN, SceneSet
from tests.fixtures import goo_record, write_goo


def _found(data: SceneSet) -> dict[str, int]:
    return {finding.name: finding.count for finding in data.findings}


@pytest.mark.parametrize("form", ["pickle", "json"])
def test_coordinates_are_of_640_by_480_whatever_the_picture_is(tmp_path: Path, form: str) -> None:
    data = open_data(f"goo:{write_goo(tmp_path, form=form)}", "train")
    assert len(data) == 2 and data.findings == ()
    scene = data.scenes[0]
    assert scene.key == "8/cam1/cam0_img1.jpg" and scene.picture == tmp_path / "finalrealdatasetImgsV3/8/cam1/cam0_img1.jpg"
    assert scene.picture.is_file() and not scene.box_pixels and not scene.point_pixels
    (head,) = scene.heads
    assert head.box == (0.25, 0.25, 0.35, 0.45) and head.points == ((0.75, 0.5),) and head.inout == IN
    # 1920 × 1080 is not of the shape of 640 × 480, so the picture's own size must not come in.
    assert scene.normalised(1920, 1080).heads == scene.heads


def test_both_forms_say_the_same_and_the_splits_are_its_own(tmp_path: Path) -> None:
    write_goo(tmp_path / "p")
    write_goo(tmp_path / "j", form="json")
    for split, count in (("train", 2), ("val", 1), ("trainval", 3), ("test", 1)):
        pickled, plain = open_data(tmp_path / "p", split), open_data(tmp_path / "j", split)
        assert [(s.key, s.heads) for s in pickled.scenes] == [(s.key, s.heads) for s in plain.scenes] and len(plain) == count
        assert pickled.digest() == plain.digest()
    assert [data.split for data in open_splits(tmp_path / "p")] == ["train", "val", "test"]
    (tmp_path / "p/testrealhumansNew.pickle").unlink()
    with pytest.raises(DataError, match=r"no testrealhumansNew.pickle .*\(it has train, val\)"):
        open_data(tmp_path / "p", "test")


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_of_pickle(tmp_path: Path, protocol: int) -> None:
    values = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3), "f": np.asfortranarray(np.arange(4.0).reshape(2, 2)),
        "n": np.float64(0.5), "i": np.int64(-3), "big": np.array([1, 2], dtype=">i2"), "s": "ä", "b": b"\xff\x00", "t": (1, None, True),
        "set": {1, 2}, "o": np.array([["x", None]], dtype=object), "text": np.array(["ab", "c"]), "empty": np.zeros((0, 4)),
    }
    file = tmp_path / "x.pickle"
    file.write_bytes(pickle.dumps(values, protocol))
    found = load_restricted(file)
    assert list(found) == list(values)
    for name in ("a", "f", "big", "text", "empty"):
        assert found[name].dtype == values[name].dtype and np.array_equal(found[name], values[name])  # type: ignore[attr-defined]
    assert (found["n"], found["i"], found["s"], found["b"]) == (0.5, -3, "ä", b"\xff\x00")
    assert (found["t"], found["set"], found["o"]) == ((1, None, True), {1, 2}, [["x", None]])


class _Calls:
    """Pickles to a call of ``function(*arguments)``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch harm",), r"(posix|nt)\.system"),
        (eval, ("1",), r"builtins\.eval"),
        (getattr, ("a", "upper"), r"builtins\.getattr"),
        (np.load, ("x.npy",), r"numpy\.load"),
        (np.fromfile, ("x",), r"numpy\S*\.fromfile"),
        (Path, ("x",), r"pathlib\S*Path"),
    ],
)
def test_a_pickle_that_names_anything_else_is_refused_with_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], arguments: tuple[Any, ...], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "testrealhumansNew.pickle").write_bytes(pickle.dumps([_Calls(function, *arguments)]))
    with pytest.raises(DataError, match=rf"testrealhumansNew.pickle is refused: it names {name}, and"):
        open_data(f"goo:{tmp_path}", "test")
    assert [path.name for path in tmp_path.iterdir()] == ["testrealhumansNew.pickle"]


def _forged_dtype() -> bytes:
    """An array of objects whose data are bytes: with NumPy's own unpickling, pointers of the attacker's choice."""
    objects = pickle.dumps(np.array([None], dtype=object), 2)
    assert b"]q" in objects and b"N" in objects
    start = objects.rindex(b"]")
    return objects[:start] + b"U\x08AAAAAAAA" + objects[objects.rindex(b"tq"):]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "Ran out of input"),
        (b"no pickle at all", "cannot be read as a pickle"),
        (pickle.dumps([goo_record("a.jpg", (1, 2, 3, 4), (5, 6))])[:-30], "cannot be read as a pickle"),
        (pickle.dumps(np.dtype("f4")), "holds a type"),
        (pickle.dumps(set), "holds a type"),
        (b"\x80\x02cnumpy\ndtype\nU\x02V8\x85R.", "'V8' is not a plain number"),
        (b"\x80\x02c_codecs\nencode\nU\x01xU\x04zlib\x86R.", "bytes in encoding 'zlib'"),
        (b"\x80\x02cnumpy.core.multiarray\nscalar\nK\x01U\x01x\x86R.", "a number's dtype is damaged"),
        (b"\x80\x02cnumpy\ndtype\n}U\x04evilK\x01sb.", "cannot be read as a pickle"),
        (_forged_dtype(), "not a list of them"),
    ],
)
def test_damaged_and_forged_pickles(tmp_path: Path, content: bytes, cause: str) -> None:
    file = tmp_path / "testrealhumansNew.pickle"
    file.write_bytes(content)
    with pytest.raises(DataError, match=cause):
        open_data(f"goo:{tmp_path}", "test")


def test_a_list_of_lists_of_lists_is_no_bomb(tmp_path: Path) -> None:
    nested: list[Any] = [0] * 10
    for _ in range(40):
        nested = [nested] * 10
    file = tmp_path / "x.pickle"
    file.write_bytes(pickle.dumps(nested))
    found = load_restricted(file)
    assert found[0] is found[9] and len(found) == 10
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    file.write_bytes(b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".")
    with pytest.raises(DataError, match="nested too deeply"):
        load_restricted(file)


def _write(root: Path, *records: Any) -> Path:
    text = json.dumps(records, default=lambda value: value.tolist())
    (root / "testrealhumansNew.json").write_text("\ufeff" + text, encoding="utf-8")
    return root


def test_records_with_defects(tmp_path: Path) -> None:
    box, gaze = (160.0, 120.0, 224.0, 216.0), (480.0, 240.0)
    empty = goo_record("empty.jpg", box, gaze) | {"ann": {"bboxes": [], "labels": []}}
    elsewhere = goo_record("elsewhere.jpg", box, gaze) | {"hx": 500, "hy": 400}
    _write(
        tmp_path, goo_record("a.jpg", box, gaze), goo_record("a.jpg", box, gaze), goo_record("a.jpg", (10, 20, 42, 68), gaze), empty, elsewhere,
        goo_record("turned.jpg", (224, 216, 160, 120), (645.0, 240.0)), goo_record("flat.jpg", (10, 20, 10, 40), gaze),
    )
    data = open_data(tmp_path, "test")
    assert [(scene.key, len(scene.heads)) for scene in data.scenes] == [("a.jpg", 2), ("elsewhere.jpg", 1), ("turned.jpg", 1)]
    assert data.scenes[2].heads[0].box == data.scenes[0].heads[0].box and data.scenes[2].heads[0].points == ((1.0, 0.5),)
    assert _found(data) == {
        "duplicate record": 1, "record without a head box": 1, "head point outside the head box": 1, "reversed box": 1,
        "gaze point outside the picture": 1, "head box without area": 1,
    }
    assert data.findings[2].example == "testrealhumansNew.json: record 4: elsewhere.jpg: 500, 400"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gaze_cx": 1440.0}, r"record 1: coordinate 1440 is beyond 640, .* in 640 x 480; this file seems to be in its pictures' own pixels"),
        ({"gaze_cy": None}, r"record 1: gaze \(480.0, None\) is not made of finite numbers"),
        ({"ann": {"bboxes": [[1, 2, 3]]}}, r"record 1: head box \[1, 2, 3\] is not made of four"),
        ({"ann": {"boxes": []}}, r"record 1: 'bboxes' is missing"),
        ({"ann": None}, r"record 1: 'NoneType' object"),
        ({"filename": ""}, r"record 1: filename is empty"),
    ],
)
def test_unreadable_records_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = goo_record("a.jpg", (160.0, 120.0, 224.0, 216.0), (480.0, 240.0))
    _write(tmp_path, good, good | change)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path, "test")


def test_json_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "testrealhumansNew.json").write_text("{}")
    with pytest.raises(DataError, match="holds a dict where a list of records"):
        open_data(tmp_path, "test")
    (tmp_path / "testrealhumansNew.json").write_text("[")
    with pytest.raises(DataError, match="not readable as JSON"):
        open_data(tmp_path, "test")


def test_a_gaze_marked_missing_is_no_target_in_the_corner(tmp_path: Path) -> None:
    file = write_goo(tmp_path, form="json") / "oneshotrealhumansNew.json"
    records = json.loads(file.read_text())
    records[0] |= {"gaze_cx": -1, "gaze_cy": -1}
    file.write_text(json.dumps(records))
    data = open_data(f"goo:{tmp_path}", "train")
    assert len(data) == 1 and _found(data) == {"in frame without a gaze point": 1}
    file.write_text(json.dumps([*records, 5]))
    with pytest.raises(DataError, match="record 2: holds a int where a record"):
        open_data(f"goo:{tmp_path}", "train")
