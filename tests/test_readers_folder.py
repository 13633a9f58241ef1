"""Picture folders: the heads file as CSV and as COCO JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.datacheck import check_data
from distill.errors import DataError, HeadsError
from distill.readers import open_data
from distill.readers.findings import Findings
from distill.readers.heads_file import assign_heads, read_heads_file
from distill.scenes import UNKNOWN, SceneSet
from distill.subjects import find_heads_file, gather, given_pictures
from tests.fixtures import SIZE, write_coco, write_folder, write_picture


def _found(data: SceneSet) -> dict[str, int]:
    return {finding.name: finding.count for finding in data.findings}


def test_folder_of_pictures(tmp_path: Path) -> None:
    data = open_data(f"folder:{write_folder(tmp_path)}")
    assert (data.split, len(data), [len(scene.heads) for scene in data.scenes]) == ("all", 3, [2, 1, 1])
    head = data.scenes[0].heads[1]
    assert (head.box, head.points, head.inout, head.person) == ((42, 8, 58, 26), (), UNKNOWN, "2")
    assert data.scenes[0].key == "photo 0.jpg" and data.scenes[0].box_pixels
    assert open_data(tmp_path, "all").scenes == data.scenes
    with pytest.raises(DataError, match="no split 'val'"):
        open_data(tmp_path, "val")


def test_heads_file_elsewhere_with_columns_in_another_order(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures")
    write_picture(tmp_path / "pictures/sub/deep.png")
    (tmp_path / "other.csv").write_text(
        "\ufeffperson, image, score, XMIN, ymin, xmax, ymax\n,sub/deep.png,0.9,30,4,10,20\n", encoding="utf-8"
    )
    data = open_data(f"folder:{tmp_path}/pictures?heads={tmp_path}/other.csv")
    (scene,) = data.scenes
    assert scene.key == "sub/deep.png" and scene.heads[0].box == (10, 4, 30, 20) and scene.heads[0].person == "0"
    assert _found(data) == {"reversed box": 1, "picture without heads": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("photo 0.jpg,1,2,3,4,5\n", r"heads.csv:1: no column image, person"),
        ("", r"heads.csv:1: no column image"),
        ("image,person,xmin,ymin,xmax,ymax\nphoto 0.jpg,1,2,3,4\n", r"heads.csv:2: 5 columns where 6"),
        ("image,person,xmin,ymin,xmax,ymax\nphoto 0.jpg,1,2,3,,5\n", r"heads.csv:2: xmax is ''"),
        ("image,person,xmin,ymin,xmax,ymax\nphoto 0.jpg,1,2,3,2,5\n", r"heads.csv:2: .* has no area"),
        ("image,person,xmin,ymin,xmax,ymax\nabsent.jpg,1,2,3,4,5\n", r"heads.csv:2: picture absent.jpg is neither"),
        ("image,person,xmin,ymin,xmax,ymax\nphoto\0.jpg,1,2,3,4,5\n", r"picture 'photo\\x00.jpg' has a sign in its name that no file's can have"),
        ("image,person,xmin,ymin,xmax,ymax\n,1,2,3,4,5\n", r"heads.csv:2: the image is not named"),
    ],
)
def test_bad_heads_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (write_folder(tmp_path) / "heads.csv").write_text(text)
    with pytest.raises(HeadsError, match=message):
        open_data(f"folder:{tmp_path}")


def test_rows_of_pictures_that_were_not_given_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path)
    findings = Findings()
    rows = read_heads_file(tmp_path / "heads.csv", findings)
    scenes, strangers = assign_heads(rows, [tmp_path / "photo 1.jpg"], tmp_path / "heads.csv")
    assert [scene.picture.name for scene in scenes] == ["photo 1.jpg"]
    assert [(row.image, row.place) for row in strangers] == [
        ("photo 0.jpg", "heads.csv:2"), ("photo 0.jpg", "heads.csv:3"), ("photo 2.jpg", "heads.csv:5")
    ]


def test_a_bare_name_that_fits_two_pictures_is_refused(tmp_path: Path) -> None:
    pictures = [write_picture(tmp_path / folder / "same.jpg") for folder in ("a", "b")]
    (tmp_path / "heads.csv").write_text("image,person,xmin,ymin,xmax,ymax\nsame.jpg,1,2,3,8,9\n")
    rows = read_heads_file(tmp_path / "heads.csv", Findings())
    with pytest.raises(HeadsError, match="fits 2 pictures"):
        assign_heads(rows, pictures, tmp_path / "heads.csv")


# Head boxes in COCO JSON


def test_coco_heads_are_those_of_the_category_by_name(tmp_path: Path) -> None:
    data = open_data(write_coco(tmp_path))
    assert (data.reader, data.split, data.files) == ("folder", "all", (tmp_path / "annotations.json",))
    assert [scene.key for scene in data.scenes] == ["first.jpg", "sub/second.jpg"]
    assert [[head.person for head in scene.heads] for scene in data.scenes] == [["31", "33"], ["34"]]
    head = data.scenes[0].heads[1]
    assert (head.box, head.points, head.inout) == ((42, 8, 58, 26), (), UNKNOWN) and data.scenes[0].size == SIZE
    bodies = open_data(f"folder:{tmp_path}?category=PERSON")
    assert [head.box for scene in bodies.scenes for head in scene.heads] == [(2, 4, 26, 44)]
    assert _found(bodies) == {"picture without heads": 1}


def test_coco_pixels_are_those_of_the_size_that_it_states(tmp_path: Path) -> None:
    (scene, _) = open_data(write_coco(tmp_path, size=(640, 480))).scenes
    assert scene.heads[1].box == (420, 80, 580, 260)
    assert scene.normalised(*SIZE).heads[1].box == pytest.approx((42 / 64, 8 / 48, 58 / 64, 26 / 48))


def test_a_picture_that_was_turned_after_it_was_annotated_is_refused(tmp_path: Path) -> None:
    (scene, _) = open_data(write_coco(tmp_path, size=(48, 64))).scenes
    with pytest.raises(DataError, match=r"first.jpg is 64 x 48, and first.jpg was annotated at 48 x 64: one of them is turned"):
        scene.normalised(*SIZE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), r"no list categories; a COCO file holds"),
        (lambda c: c["categories"].pop(), r"no category 'head' \(there: person\); say which one .* \?category=NAME"),
        (lambda c: c["annotations"][0].update(image_id=77), r"annotation 0: image_id 77 is not among the images"),
        (lambda c: c["annotations"][2].update(bbox=[1, 2, 3]), r"annotation 2: bbox is \[1, 2, 3\], not four finite numbers"),
        (lambda c: c["annotations"][2].update(bbox=[1, 2, 3, None]), r"annotation 2: bbox is .* not four finite numbers"),
        (lambda c: c["annotations"][2].update(bbox=[1, 2, 3, 10**400]), r"annotation 2: bbox is .* not four finite numbers"),
        (lambda c: c["images"][0].update(file_name="\ud800.jpg"), r"annotation 0: picture '\\ud800.jpg' has a sign in its name"),
        (lambda c: c["images"][0].update(file_name="\udfff.jpg"), r"annotation 0: picture '\\udfff.jpg' has a sign in its name"),
        (lambda c: c["annotations"][1].pop("category_id"), r"annotation 1: category_id is None"),
        (lambda c: c["images"][1].update(width=0), r"image 1: size 0 x 48 is not positive"),
        (lambda c: c["images"][1].pop("file_name"), r"image 1: file_name is None"),
        (lambda c: c["images"][1].update(file_name="gone.jpg"), r"annotation 3: picture gone.jpg is neither given nor on the disk"),
        (lambda c: c.update(annotations=c["annotations"][1:2]), r"none of its 1 annotations is a head"),
    ],
)
def test_bad_coco_files_are_named(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    file = write_coco(tmp_path) / "annotations.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(HeadsError, match=message):
        open_data(f"folder:{tmp_path}?heads={file}")


def test_coco_defects_are_counted(tmp_path: Path) -> None:
    file = write_coco(tmp_path) / "annotations.json"
    content = json.loads(file.read_text())
    first = content["annotations"][0]
    content["annotations"] += [
        first | {"id": 50}, first | {"id": 51, "iscrowd": 1}, first | {"id": 52, "bbox": [6, 8, 0, 9]}, first | {"id": 53, "bbox": [40, 30, -8, 9]},
    ]
    file.write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    data = open_data(tmp_path)
    assert _found(data) == {"duplicate row": 1, "crowd instead of a head": 1, "head box without area": 1, "reversed box": 1}
    assert data.findings[0].example == "annotations.json: annotation 4: first.jpg" and data.scenes[0].heads[-1].box == (32, 30, 40, 39)


def test_a_csv_has_no_categories(tmp_path: Path) -> None:
    with pytest.raises(HeadsError, match=r"category 'head' is given, but .*heads.csv is a CSV"):
        open_data(f"folder:{write_folder(tmp_path)}?category=head")


def test_prediction_takes_coco_heads_too_and_in_the_pictures_own_pixels(tmp_path: Path) -> None:
    file = write_coco(tmp_path, size=(640, 480)) / "annotations.json"
    pictures, root = given_pictures([tmp_path])
    assert find_heads_file(None, [tmp_path]) == file
    subjects = gather(pictures, file, root=root)
    assert [row.person for row in subjects.rows] == ["31", "33", "34"] and subjects.findings == ()
    assert [head.box for scene in subjects.scenes for head in scene.heads] == [(6, 8, 22, 26), (42, 8, 58, 26), (20, 10, 36, 30)]
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [-20, 80, 180, 180]
    file.write_text(json.dumps(content))
    (finding,) = gather(pictures, file, root=root).findings
    assert (finding.name, finding.example) == ("box over the edge", "annotations.json: annotation 0: first.jpg is 64 x 48 pixels")
    write_coco(tmp_path, size=(48, 64))
    with pytest.raises(DataError, match="one of them is turned"):
        gather(pictures, file, root=root)


def test_the_check_names_other_sizes_and_turned_pictures(tmp_path: Path) -> None:
    report = check_data([open_data(write_coco(tmp_path / "a", size=(640, 480)))])
    assert [(f.name, f.count, f.action) for f in report.findings] == [
        ("picture of another size than stated", 2, "boxes and points scaled with it")
    ]
    report = check_data([open_data(write_coco(tmp_path / "b", size=(48, 64)))])
    assert [(f.name, f.count) for f in report.findings] == [("picture turned against its annotations", 2)]
    assert report.findings[0].example == "first.jpg: 48 x 64, is 64 x 48"


def test_a_link_to_a_picture_is_a_picture_of_its_own(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "heads.csv").write_text("image,person,xmin,ymin,xmax,ymax\na.png,,1,1,9,9\nb.png,,2,2,9,9\nb.png,,3,3,9,9\n")
    scenes = open_data(f"folder:{tmp_path}", "all").scenes
    assert [(scene.key, [head.box[0] for head in scene.heads]) for scene in scenes] == [("a.png", [1]), ("b.png", [2, 3])]


def test_a_byte_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "heads.csv"
    for mark in (b"", b"\xef\xbb\xbf"):
        file.write_bytes(mark + "image,person,xmin,ymin,xmax,ymax\r\nü.png,a,1,2,30,40\r\n".encode() + b"caf\xe9.png,b,1,2,30,40\r\n")
        with pytest.raises(HeadsError, match=r"heads\.csv:3: byte 0xe9 is not UTF-8; save the file as CSV in UTF-8"):
            read_heads_file(file, Findings())


def test_what_stated_sizes_mean_is_in_the_digest(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    (file,) = root.glob("*.json")
    before = open_data(f"folder:{root}").digest()
    content = json.loads(file.read_text())
    assert open_data(f"folder:{root}").digest() == before
    for picture in content["images"]:
        picture.update(width=picture["width"] * 2, height=picture["height"] * 2)
    file.write_text(json.dumps(content))
    assert open_data(f"folder:{root}").digest() != before
