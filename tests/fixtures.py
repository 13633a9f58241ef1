"""Data sets of a few lines in their true layouts, with small real JPEGs, for tests of anything that reads data.

Every function writes below ``root`` and returns what a test opens. The same arguments give the same bytes.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

Box = tuple[float, float, float, float]
Point = tuple[float, float]

SIZE = (64, 48)  # width, height of every picture in pixels


def write_picture(
    path: Path, *, boxes: Sequence[Box] = (), points: Sequence[Point] = (), seed: int = 0, size: tuple[int, int] = SIZE
) -> Path:
    """A small JPEG: a gradient, a disc in each head box (pixels), a dot at each gaze point ([0,1])."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dice = random.Random(f"{path.name}/{seed}")
    width, height = size
    picture = Image.linear_gradient("L").resize(size).rotate(dice.choice((0, 180))).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for _ in range(3):
        left, top = dice.randrange(width), dice.randrange(height)
        draw.rectangle((left, top, left + 6, top + 6), fill=(dice.randrange(256), dice.randrange(256), dice.randrange(256)))
    for x0, y0, x1, y1 in boxes:
        draw.ellipse((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=(222, 184, 150), outline=(60, 40, 30))
    for x, y in points:
        draw.ellipse((x * width - 2, y * height - 2, x * width + 2, y * height + 2), fill=(230, 40, 40))
    picture.save(path, quality=90)
    return path


def train_row(path: str, index: int, box: Box, gaze: Point, inout: int) -> str:
    """One line of GazeFollow's training file: 17 columns."""
    return ",".join([*_front(path, index, box, gaze), str(inout), "fixture", "False"])


def annotator_row(path: str, index: int, box: Box, gaze: Point) -> str:
    """One line of GazeFollow's test file: 16 columns, without in/out."""
    return ",".join([*_front(path, index, box, gaze), "fixture", "original.jpg"])


def _front(path: str, index: int, box: Box, gaze: Point) -> list[str]:
    eye = ((box[0] + box[2]) / 2 / SIZE[0], (box[1] + box[3]) / 2 / SIZE[1])
    numbers = (0.05, 0.1, 0.4, 0.8, *(round(v, 5) for v in eye), *gaze, *box)
    return [path, str(index), *(str(value) for value in numbers)]


def write_gazefollow(root: Path, scenes: int = 10, *, traps: bool = False) -> Path:
    """GazeFollow's extended release: ``scenes`` training pictures and two test pictures.

    Training pictures hold one or two heads; the second of every third one looks out of the frame. The first test
    picture has two heads with three annotators each, the second one head with two. ``traps`` adds a byte order mark and
    one of each defect: an invalid row (−1), a reversed box, a repeated row, an in-frame row without a point, a box over
    the picture's edge and one without area, all in the training file.
    """
    dice = random.Random(scenes)
    train, index = [], 0
    for number in range(scenes):
        path = f"train/{number // 4:08d}/{number:08d}.jpg"
        left, top = dice.randrange(2, 14), dice.randrange(2, 20)
        heads: list[tuple[Box, Point, int]] = [
            ((left, top, left + 14.0, top + 16.0), (round(dice.uniform(0.3, 0.95), 3), round(dice.uniform(0.1, 0.9), 3)), 1)
        ]
        if number % 3 == 0:
            heads.append(((44.0, 6.0, 60.0, 24.0), (-1.0, -1.0), 0))
        elif number % 3 == 1:
            heads.append(((46.0, 20.0, 60.0, 38.0), (round(dice.uniform(0.05, 0.6), 3), 0.55), 1))
        for box, gaze, inout in heads:
            train.append(train_row(path, index, box, gaze, inout))
            index += 1
        write_picture(root / path, boxes=[h[0] for h in heads], points=[h[1] for h in heads if h[2] == 1])
    if traps:
        first = "train/00000000/00000000.jpg"
        train += [
            train_row(first, 900, (1.0, 1.0, 9.0, 9.0), (0.5, 0.5), -1),
            train_row("train/90000000/90000001.jpg", 901, (30.0, 40.0, 10.0, 20.0), (0.7, 0.25), 1),
            train[0],
            train_row(first, 902, (2.0, 2.0, 12.0, 12.0), (-1.0, -1.0), 1),
            train_row("train/90000000/90000001.jpg", 903, (50.0, 30.0, 80.0, 46.0), (0.2, 0.2), 1),
            train_row(first, 904, (5.0, 5.0, 5.0, 20.0), (0.4, 0.4), 1),
        ]
        write_picture(root / "train/90000000/90000001.jpg", boxes=[(10, 20, 30, 40)], points=[(0.7, 0.25)])
    test: list[str] = []
    for path, shown in (
        ("test2/00000000/00000000.jpg", [((4.0, 6.0, 18.0, 22.0), 3), ((40.0, 4.0, 56.0, 22.0), 3)]),
        ("test2/00000001/00000001.jpg", [((20.0, 10.0, 34.0, 26.0), 2)]),
    ):
        points = []
        for box, annotators in shown:
            gaze = (0.5, 0.75) if box[0] < 30 else (0.3, 0.6)
            points.append(gaze)
            for annotator in range(annotators):
                near = (round(gaze[0] + 0.01 * annotator, 3), round(gaze[1] - 0.02 * annotator, 3))
                test.append(annotator_row(path, len(test), box, near))
        write_picture(root / path, boxes=[box for box, _ in shown], points=points, seed=1)
    mark = "\ufeff" if traps else ""
    _write(root / "train_annotations_release.txt", mark + "\n".join(train) + "\n")
    _write(root / "test_annotations_release.txt", mark + "\n".join(test) + "\n")
    return root


def write_gazefollow_json(root: Path) -> Path:
    """GazeFollow's preprocessed form: three training pictures, one test picture with two annotators."""
    width, height = SIZE

    def head(number: int, box: Box, points: Sequence[Point], inout: int) -> dict[str, object]:
        return {
            "bbox": list(box),
            "bbox_norm": [box[0] / width, box[1] / height, box[2] / width, box[3] / height],
            "inout": inout,
            "gazex": [x * width for x, _ in points],
            "gazey": [y * height for _, y in points],
            "gazex_norm": [x for x, _ in points],
            "gazey_norm": [y for _, y in points],
            "head_id": number,
        }

    def entry(path: str, heads: list[dict[str, object]]) -> dict[str, object]:
        write_picture(root / path, seed=path.startswith("test2"))
        return {"path": path, "heads": heads, "num_heads": len(heads), "width": width, "height": height}

    train = [
        entry("train/00000000/00000000.jpg", [head(0, (8, 6, 24, 24), [(0.75, 0.5)], 1)]),
        entry(
            "train/00000000/00000001.jpg",
            [head(0, (4, 4, 20, 20), [(-1.0, -1.0)], 0), head(1, (40, 8, 56, 26), [(0.25, 0.5)], 1)],
        ),
        entry("train/00000000/00000002.jpg", [head(0, (16, 12, 32, 36), [(0.5, 0.125)], 1)]),
    ]
    test = [entry("test2/00000000/00000000.jpg", [head(0, (8, 6, 24, 24), [(0.5, 0.5), (0.5, 0.75)], 1)])]
    _write(root / "train_preprocessed.json", json.dumps(train))
    _write(root / "test_preprocessed.json", json.dumps(test))
    return root


def write_vat(
    root: Path, train: Sequence[str] = ("Show One", "Show Two", "Third_Show"), *, frames: int = 13, test: str = "Test Show"
) -> Path:
    """VideoAttentionTarget: per show one clip of ``frames`` frames, two people, the second from the 4th frame on.

    Person ``s00`` moves 1 pixel a frame to the right and looks at (40, 30) pixels, out of the frame in the 2nd frame,
    and at (−1, 20) in the 3rd. The pictures of ``Show One`` lie under ``Show_One``: the trees do not agree on spaces.
    """
    for split, shows in (("train", train), ("test", (test,))):
        for seed, show in enumerate(shows, 0 if split == "train" else len(train)):
            clip = f"{10 * frames}_{11 * frames - 1}"
            folder = root / "annotations" / split / show / clip
            place = root / "images" / ("Show_One" if show == "Show One" else show) / clip
            first, second = [], []
            for frame in range(frames):
                name = f"{frame + 1:08d}.jpg"
                box: Box = (4 + frame, 6, 20 + frame, 24)
                gaze = {1: (-1, -1), 2: (-1, 20)}.get(frame, (40, 30))
                first.append(",".join(map(str, (name, *map(int, box), *gaze))))
                if frame >= 3:
                    second.append(",".join(map(str, (name, 44, 8, 60, 26, 10, 40))))
                write_picture(place / name, boxes=[box], points=[(40 / SIZE[0], 30 / SIZE[1])], seed=seed)
            _write(folder / "s00.txt", "\n".join(first) + "\n")
            _write(folder / "s01.txt", "\n".join(second) + "\n")
    return root


def write_folder(root: Path, pictures: int = 3) -> Path:
    """A folder of pictures with ``heads.csv``: two heads in the first picture, one in each other one."""
    lines = ["image,person,xmin,ymin,xmax,ymax"]
    for number in range(pictures):
        name = f"photo {number}.jpg"
        boxes: list[Box] = [(6, 8, 22, 26), (42, 8, 58, 26)] if number == 0 else [(20, 10, 36, 30)]
        write_picture(root / name, boxes=boxes)
        lines += [f"{name},{person},{x0},{y0},{x1},{y1}" for person, (x0, y0, x1, y1) in enumerate(boxes, 1)]
    _write(root / "heads.csv", "\n".join(lines) + "\n")
    return root


CHILDPLAY_HEADER = "clip,frame,person_id,bbox_x,bbox_y,bbox_width,bbox_height,gaze_class,gaze_x,gaze_y,is_child"
CHILDPLAY_CLIPS = {"train": ("1Aea8BH-PCs_1256-1258", "a_b-c_7-9-downsampled"), "val": ("bI1GohGXSt0_20-22",), "test": ("1Ab4vLMMAbY_2354-2356",)}


def write_childplay(root: Path) -> Path:
    """ChildPlay: three frames a clip, two people; names hold underscores and hyphens, one clip is ``-downsampled``.

    Person 1 looks at (40, 30) pixels, in the 2nd frame out of the picture. Person 2 is there from the 2nd frame on: with their eyes closed, then
    ``inside_visible`` without a point. The file begins with a byte order mark.
    """
    for split, clips in CHILDPLAY_CLIPS.items():
        for seed, clip in enumerate(clips):
            video, start = clip.rsplit("_", 1)[0], int(clip.rsplit("_", 1)[1].split("-")[0])
            lines = [CHILDPLAY_HEADER]
            for frame in (1, 2, 3):
                gaze = "outside_frame,-1.0,-1.0" if frame == 2 else "inside_visible,40.0,30.0"
                lines.append(f"{clip},{frame},1,{4 + frame},6,16,18,{gaze},1")
                if frame > 1:
                    lines.append(f"{clip},{frame},2,44,8,16,18,{'eyes_closed' if frame == 2 else 'inside_visible'},-1.0,-1.0,0")
                picture = root / "images" / clip / f"{video}_{start + frame - 1}.jpg"
                write_picture(picture, boxes=[(4 + frame, 6, 20 + frame, 24)], points=[(40 / SIZE[0], 30 / SIZE[1])], seed=seed)
            _write(root / "annotations" / split / f"{clip}.csv", "\ufeff" + "\n".join(lines) + "\n")
    return root


def goo_record(name: str, box: Box, gaze: Point) -> dict[str, object]:
    """One record of GOO-Real in its own units, 640 × 480: a shelf object's box, then the head's."""
    return {
        "filename": name.replace("/", "\\"), "width": 1920, "height": 1080,
        "ann": {
            "bboxes": np.array([[gaze[0] - 8, gaze[1] - 8, gaze[0] + 8, gaze[1] + 8], box], dtype=np.float32),
            "labels": np.array([17, -1], dtype=np.int64),
        },
        "gaze_item": np.int64(17), "gaze_cx": gaze[0], "gaze_cy": gaze[1],
        "hx": (box[0] + box[2]) / 2, "hy": (box[1] + box[3]) / 2,
    }


def write_goo(root: Path, *, form: str = "pickle", protocol: int = 4) -> Path:
    """GOO-Real: two training pictures, one to validate and one to test on, all 1920 × 1080 with annotations in 640 × 480."""
    names = {"oneshotrealhumansNew": ("8/cam1/cam0_img1.jpg", "8/cam1/cam0_img2.jpg"), "valrealhumansNew": ("9/cam0/cam0_img3.jpg",)}
    for number, (stem, pictures) in enumerate({**names, "testrealhumansNew": ("10/cam0/cam0_img4.jpg",)}.items()):
        records = []
        for step, name in enumerate(pictures):
            box, gaze = (160.0 + 64 * step, 120.0, 224.0 + 64 * step, 216.0), (480.0, 240.0 + 24 * number)
            records.append(goo_record(name, box, gaze))
            wide = [(box[0] * 3, box[1] * 2.25, box[2] * 3, box[3] * 2.25)]
            points = [(gaze[0] / 640, gaze[1] / 480)]
            write_picture(root / "finalrealdatasetImgsV3" / name, boxes=wide, points=points, seed=number, size=(1920, 1080))
        if form == "pickle":
            (root / f"{stem}.pickle").write_bytes(pickle.dumps(records, protocol))
        else:
            _write(root / f"{stem}.json", json.dumps(records, default=lambda value: value.tolist()))
    return root


def write_coco(root: Path, *, size: tuple[int, int] = SIZE) -> Path:
    """A folder of two pictures with ``annotations.json``: two heads in the first, one in the second, and somebody's body.

    ``size`` is what the file says that the pictures have.
    """
    across, down = size[0] / SIZE[0], size[1] / SIZE[1]

    def annotation(number: int, image: int, kind: int, x: float, y: float, width: float, height: float) -> dict[str, object]:
        box = [x * across, y * down, width * across, height * down]
        return {"id": number, "image_id": image, "category_id": kind, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}

    content = {
        "info": {"year": 2024}, "licenses": [],
        "images": [
            {"id": 5, "file_name": "first.jpg", "width": size[0], "height": size[1]},
            {"id": 9, "file_name": "sub\\second.jpg", "width": size[0], "height": size[1]},
        ],
        "categories": [{"id": 1, "name": "person", "supercategory": "none"}, {"id": 7, "name": "Head", "supercategory": "none"}],
        "annotations": [
            annotation(31, 5, 7, 6, 8, 16, 18), annotation(32, 5, 1, 2, 4, 24, 40),
            annotation(33, 5, 7, 42, 8, 16, 18), annotation(34, 9, 7, 20, 10, 16, 20),
        ],
    }
    write_picture(root / "first.jpg", boxes=[(6, 8, 22, 26), (42, 8, 58, 26)])
    write_picture(root / "sub/second.jpg", boxes=[(20, 10, 36, 30)])
    _write(root / "annotations.json", json.dumps(content))
    return root


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
