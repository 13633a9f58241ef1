"""Folders of photographs with a heads file: subfolders, pictures on their side, boxes in pixels and in [0,1]."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures import write_folder, write_picture
from PIL import Image
from training_world import store_teacher

from distill.cli import main
from teachers.cache.reader import CacheReader


def build(photos: Path, out: Path, teacher: Path, *more: object) -> list[str]:
    return ["cache", "build", "--images", str(photos), "--teacher", str(teacher), "--out", str(out), "--views", "2", "--device", "cpu", *map(str, more)]


def test_photographs_in_folders_and_turned_ones_are_cached_from_either_unit(tmp_path: Path) -> None:
    photos, teacher = tmp_path / "photos", store_teacher(tmp_path / "teacher")
    write_picture(photos / "a.jpg", boxes=[(6, 8, 22, 26)])
    write_picture(photos / "2024/deep down/b.png", boxes=[(20, 10, 36, 30)])
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photos / "a.jpg") as picture:
        picture.save(photos / "turned.jpg", exif=exif)  # 64 x 48 as stored, 48 x 64 as seen
        picture.transpose(Image.Transpose.ROTATE_270).save(photos / "upright.png")
    sizes = {"a.jpg": (64, 48), "2024/deep down/b.png": (64, 48), "turned.jpg": (48, 64), "upright.png": (48, 64)}
    boxes = {"a.jpg": (6, 8, 22, 26), "2024/deep down/b.png": (20, 10, 36, 30), "turned.jpg": (22, 50, 40, 62), "upright.png": (22, 50, 40, 62)}
    lines = [f"{name},,{','.join(map(str, box))}" for name, box in boxes.items()]
    (tmp_path / "pixels.csv").write_text("image,person,xmin,ymin,xmax,ymax\n" + "\n".join(lines))
    unit = {name: [value / sizes[name][place % 2] for place, value in enumerate(box)] for name, box in boxes.items()}
    lines = [f"0.9,{name},{','.join(map(str, box))},anna" for name, box in unit.items()]
    (tmp_path / "unit.csv").write_text("score,image,xmin_norm,ymin_norm,xmax_norm,ymax_norm,person\n" + "\n".join(lines))
    readers = []
    for name in ("pixels", "unit"):
        assert main(build(photos, tmp_path / name, teacher, "--heads", tmp_path / f"{name}.csv")) == 0
        readers.append(CacheReader(tmp_path / name))
    assert readers[0].scenes == readers[1].scenes == 4 and readers[0].rows() == 8
    for key in boxes:
        for view in range(2):
            one, other = (reader.read(key, view) for reader in readers)
            assert np.array_equal(one.geometry, other.geometry) and np.allclose(one.boxes, other.boxes, atol=1e-6)
            np.testing.assert_allclose(one.heatmap, other.heatmap, atol=2e-3)
    turned, upright = (readers[0].read(key, 0) for key in ("turned.jpg", "upright.png"))
    assert np.array_equal(turned.boxes, upright.boxes)
    # The turned one went through JPEG once more; as stored, on its side, it would be another picture altogether.
    assert np.abs(turned.heatmap - upright.heatmap).max() < 0.25 * np.abs(turned.heatmap - readers[0].read("a.jpg", 0).heatmap).max()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,person,xmin,ymin,xmax,ymax\nphoto 0.jpg,,0.1,0.2,0.3,0.4\n", "every box lies in [0,1], where xmin,ymin,xmax,ymax are pixels"),
        ("image,person,xmin_norm,ymin_norm,xmax_norm,ymax_norm\nphoto 0.jpg,,1,2,30,40\n", "heads.csv:2: xmax_norm is 30, not in [0,1]"),
        ("image,person,xmin_norm,ymin_norm,xmax_norm\nphoto 0.jpg,,.1,.2,.3\n", "heads.csv:1: no column ymax_norm; the first line must be image,person,xmin_norm"),
        ("image,person,xmin,ymin,xmax,ymax,xmin_norm\nphoto 0.jpg,,1,2,3,4,.1\n", "heads.csv:1: boxes in pixels and in [0,1] stand side by side"),
        ("image,person,xmin_norm,ymin_norm,xmax_norm,ymax_norm\nphoto 0.jpg,,.1,left,.3,.4\n", "heads.csv:2: ymin_norm is 'left', not a finite number"),
    ],
)  # fmt: skip
def test_units_are_never_guessed(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write_folder(tmp_path / "photos") / "heads.csv").write_text(text)
    assert main(build(tmp_path / "photos", tmp_path / "cache", store_teacher(tmp_path / "teacher"))) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("distill: error:")]
    assert len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "cache").exists()


def test_people_are_answered_for_in_pixels_whatever_the_unit(tmp_path: Path) -> None:
    photos, teacher = write_folder(tmp_path / "photos"), store_teacher(tmp_path / "teacher")
    lines = (photos / "heads.csv").read_text().splitlines()[1:]
    unit = [[*fields[:2], *(str(float(value) / (64, 48)[place % 2]) for place, value in enumerate(fields[2:]))] for fields in (line.split(",") for line in lines)]
    (tmp_path / "unit.csv").write_text("\n".join(",".join(fields) for fields in [["image", "person", "xmin_norm", "ymin_norm", "xmax_norm", "ymax_norm"], *unit]))
    told = []
    for number, heads in enumerate((photos / "heads.csv", tmp_path / "unit.csv")):
        out = tmp_path / str(number)
        assert main(["predict", str(teacher), str(photos), "--heads", str(heads), "--out", str(out), "--no-overlays", "--device", "cpu"]) == 0
        told.append([json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()])
    assert [answer["box"] for answer in told[0]] == [pytest.approx(answer["box"]) for answer in told[1]]
    assert [answer["point"] for answer in told[0]] == [pytest.approx(answer["point"]) for answer in told[1]]
