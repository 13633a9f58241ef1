"""Both data sets in their true layout through every command, in the order of a user's work."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import write_folder, write_gazefollow, write_vat
from training_world import TINY, World, cache_arguments, store_teacher

from distill.cli import main
from distill.readers import open_data
from distill.source import SceneSource
from distill.views import ViewPolicy
from students.catalogue import STUDENTS
from students.onnx_runtime import OnnxGaze
from teachers.cache.reader import CacheReader
from teachers.weights import load_model


class Chain:
    """What every command said, exited with, and left."""

    def __init__(self, name: str, root: Path) -> None:
        # GazeFollow as `auto` finds the machine, VideoAttentionTarget on the CPU by name.
        self.name, self.device = name, "auto" if name == "gazefollow" else "cpu"
        folder = write_gazefollow(root / "data", 16, traps=True) if name == "gazefollow" else write_vat(root / "data")
        spec = f"{name}:{folder}"
        self.world = World(Path(spec), store_teacher(root / "teacher"), root / "cache")
        self.run, self.photos, self.answers = root / "runs/first", write_folder(root / "photos"), root / "answers"
        self.said: dict[str, tuple[int, str, str]] = {}
        run, onnx = str(self.run), str(self.run / "exports/student.onnx")
        # One student for each decoder.
        student, batch = ("tiny_cnn", 4) if name == "gazefollow" else ("tiny_query", 3)
        train = self.world.arguments(self.run, student, batch_size=batch, device=self.device, finetune_layers=2, data=spec)
        self.do("check", "data", "check", spec, "--json", "--out", str(root / "check.json"), "--sheet", str(root / "sheet.png"))
        self.do("build", *cache_arguments(self.world, device=self.device), "--json")
        self.do("verify", "cache", "verify", str(self.world.cache), "--rows", "6", "--json")
        self.do("train", *train)
        self.do("eval", "eval", run, "--teacher", str(self.world.teacher), "--gallery", "3", "--device", self.device, "--json")
        self.do("export", "export", run, "--scenes", "6", "--json")
        for model, out in ((run, "run"), (onnx, "onnx"), (str(self.world.teacher), "teacher")):
            self.do(f"predict {out}", "predict", model, str(self.photos), "--out", str(self.answers / out), "--heatmaps", "--device", self.device, "--json")
        self.do("report", "report", run)
        self.do("info", "info", run, "--json")
        self.do("info onnx", "info", onnx, "--json")

    def do(self, what: str, *arguments: str) -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
        self.said[what] = code, out.getvalue(), err.getvalue()

    def json(self, what: str) -> Any:
        return json.loads(self.said[what][1])


@pytest.fixture(scope="module", params=["gazefollow", "vat"])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, config in TINY.items():
            patch.setitem(STUDENTS, name, config)
        yield Chain(request.param, tmp_path_factory.mktemp(request.param))
    torch.set_num_threads(threads)


def test_every_command_succeeds(chain: Chain) -> None:
    assert {what: said for what, said in chain.said.items() if said[0] != 0} == {}


def test_the_check_says_what_is_there_and_keeps_a_record(chain: Chain) -> None:
    facts = chain.json("check")
    splits = {split["split"]: split["scenes"] for split in facts["splits"]}
    assert splits == ({"train": 16, "val": 1, "test": 2} if chain.name == "gazefollow" else {"train": 6, "val": 13, "test": 13})
    root = chain.world.cache.parent
    assert json.loads((root / "check.json").read_text()) and (root / "sheet.png").stat().st_size > 1000


def test_the_cache_holds_what_training_and_validation_ask_for(chain: Chain) -> None:
    reader = CacheReader(chain.world.cache)
    train = open_data(str(chain.world.data), "train")
    coverage = reader.covers([scene.key for scene in train.scenes])
    assert not coverage.missing and not coverage.skipped
    assert chain.json("build")["complete"] and chain.json("verify")["ok"]


def test_the_run_is_complete(chain: Chain) -> None:
    names = {path.name for path in chain.run.iterdir()}
    assert names >= {"config.json", "plan.json", "metrics.jsonl", "checkpoints", "student"}
    records = [json.loads(line) for line in (chain.run / "metrics.jsonl").read_text().splitlines()]
    kinds = [record["kind"] for record in records]
    assert kinds.count("thaw") == 2 and kinds.count("epoch") == kinds.count("validation") == 3 and kinds[-1] == "end"
    assert all(record["kd_heatmap"] > 0 and record["heatmap"] > 0 for record in records if record["kind"] == "step")
    assert [event["epoch"] for event in json.loads((chain.run / "plan.json").read_text())["events"]] == [0, 1]
    best = min(record["avg_l2"] for record in records if record["kind"] == "validation")
    _, description = load_model(chain.run / "student")
    assert description["facts"]["validation"]["avg_l2"] == records[-1]["best"] == best
    assert "Progressive unfreeze scheduled" in chain.said["train"][2]
    assert "Traceback" not in "".join(said[2] for said in chain.said.values())


def test_evaluation_repeats_the_trainers_validation(chain: Chain) -> None:
    facts = chain.json("eval")
    rows = {row["role"]: row for row in facts["rows"] if row["role"] != "baseline"}
    _, description = load_model(chain.run / "student")
    for name in ("auc", "avg_l2", "min_l2", "ap"):
        assert rows["student"][name] == pytest.approx(description["facts"]["validation"][name], abs=1e-6)
    assert rows["teacher"]["avg_l2"] is not None
    assert {row["name"] for row in facts["rows"] if row["role"] == "baseline"} == {"centre", "head-position prior"}
    assert facts["split"] == "val" and facts["scenes"] == (1 if chain.name == "gazefollow" else 13)
    assert (chain.run / "eval.json").is_file()


def test_the_export_is_kept_with_its_parity(chain: Chain) -> None:
    facts = json.loads((chain.run / "exports/student.json").read_text())
    said = chain.json("export")
    assert (chain.run / "exports/student.onnx").stat().st_size > 10_000
    assert facts["digest"] == said["digest"]
    assert facts["parity"]["heatmap_probability"] <= facts["tolerance"]["probability"] == 1e-3
    assert facts["selection"]["split"] == "val"
    assert facts["lineage"]["cache"] == CacheReader(chain.world.cache).manifest.identity_digest()


@pytest.mark.parametrize(("pictures", "people"), [(1, 1), (1, 7), (3, 7)])
def test_the_exported_file_is_the_student_for_any_number_of_people(chain: Chain, pictures: int, people: int) -> None:
    student, _ = load_model(chain.run / "student")
    assert student.config.decoder == ("gazelle" if chain.name == "gazefollow" else "query")
    generator = torch.Generator().manual_seed(people)
    images = torch.randint(0, 256, (pictures, 3, *student.input_size), generator=generator) / 255
    corner = torch.rand(people, 2, generator=generator) * 0.6
    given = images, torch.cat((corner, corner + 0.3), dim=1), torch.arange(people) % pictures
    with torch.inference_mode():
        wanted = student.eval()(*given)
    found = OnnxGaze(chain.run / "exports/student.onnx", threads=1)(*given)
    torch.testing.assert_close(found.heatmap, wanted.heatmap, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.inout, wanted.inout, atol=1e-4, rtol=1e-4)


def test_run_and_exported_file_predict_alike(chain: Chain) -> None:
    people = {}
    for model in ("run", "onnx", "teacher"):
        folder = chain.answers / model
        people[model] = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        assert len(people[model]) == 4 and len(list(folder.glob("*_gaze.png"))) == 3
        with np.load(folder / "heatmaps.npz") as arrays:
            assert arrays["heatmap"].shape == (4, 32, 32) if model == "teacher" else (4, 16, 16)
            assert arrays["inout"].shape == (4,)
    for mine, theirs in zip(people["run"], people["onnx"], strict=True):
        assert (mine["image"], mine["person"], mine["box"]) == (theirs["image"], theirs["person"], theirs["box"])
        assert mine["inout"] == pytest.approx(theirs["inout"], abs=1e-3)
        assert np.hypot(*np.subtract(mine["point"], theirs["point"])) < 6


def test_the_report_is_one_page_with_curves(chain: Chain) -> None:
    page = (chain.run / "report.html").read_text()
    assert "<svg" in page and "data:image/" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<link" not in page
    assert chain.said["report"][1].strip() == str(chain.run / "report.html")


def test_the_lineage_is_whole(chain: Chain) -> None:
    for what in ("info", "info onnx"):
        links = {link["what"]: link["status"] for link in chain.json(what)["links"]}
        assert set(links) == {"data", "teacher", "cache", "backbone", "run", "export"}
        assert "changed" not in links.values()


def test_a_video_cache_grows_by_the_frames_of_another_split(tmp_path: Path) -> None:
    """Training takes every sixth frame and validation all: both fit one cache, and the remedy that is named works."""
    folder = write_vat(tmp_path / "data")
    world = World(folder, store_teacher(tmp_path / "teacher"), tmp_path / "cache")
    sources = {split: SceneSource(open_data(folder, split), ViewPolicy(), spec=str(folder)) for split in ("train", "val", "trainval", "test")}
    assert {split: len(source.keys) for split, source in sources.items()} == {"train": 6, "val": 13, "trainval": 9, "test": 13}
    assert sources["train"].identity == sources["val"].identity == sources["trainval"].identity != sources["test"].identity
    assert set(sources["train"].keys) < set(sources["trainval"].keys)
    assert main(cache_arguments(world)) == 0
    reader = CacheReader(world.cache)
    assert not reader.covers(sources["train"].keys).missing and len(reader.covers(sources["val"].keys).missing) == 10
    for split in ("train", "val"):
        words = sources[split].mend.split()
        assert words[:3] == ["distill", "cache", "build"]
        assert main([*words[1:], "--teacher", str(world.teacher), "--views", "2", "--out", str(world.cache)]) == 0
        assert not CacheReader(world.cache).covers(sources[split].keys).missing
    assert CacheReader(world.cache).scenes == 9 + 10


def test_a_run_takes_its_data_from_its_cache(chain: Chain, tmp_path: Path) -> None:
    arguments = chain.world.arguments(tmp_path / "run", data=None, epochs=1, batch_size=3, limit_steps=1)
    assert "--data" not in arguments
    assert main(arguments) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["data"] == str(chain.world.data)
