"""The data check's rows without a model: against brute force, thinned, and where splits, pictures or labels are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fixtures import SIZE, write_folder, write_gazefollow, write_vat

from distill.baselines import saliency_map
from distill.cli import main
from distill.datacheck import check_data
from distill.metrics import HeadTruth, MetricAccumulator
from distill.pictures import load_picture
from distill.readers import open_data, open_splits
from distill.scenes import IN, SceneSet


def checked_command(data: str, *more: str) -> int:
    return main(["data", "check", data, *more, "--no-sheet"])


def test_baselines_against_brute_force(tmp_path: Path) -> None:
    write_gazefollow(tmp_path, 40)
    sets = open_splits(tmp_path)
    report = check_data(sets)
    found = report.baselines
    assert found is not None and (found.split, found.protocol) == ("val", "gazefollow")
    rows = {row.name: row.metrics for row in found.rows}
    assert list(rows) == ["random", "centre", "fixed bias", "head-position prior", "saliency", "one human"]
    # Only the test split has several annotators a head; leave-one-out by hand.
    looks = [np.array(h.points) for scene in open_data(tmp_path, "test").scenes for h in scene.heads]
    left = [[np.hypot(*(p - np.delete(many, k, axis=0).mean(axis=0))) for k, p in enumerate(many)] for many in looks]
    human = rows["one human"]
    assert human is not None and human.avg_l2 == pytest.approx(np.mean([np.mean(each) for each in left]))
    assert found.rows[-1].reason == "on test, 3 heads" and human.heads == len(looks) == 3

    def heads(data: SceneSet) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            (np.array([(h.box[0] + h.box[2]) / 2, (h.box[1] + h.box[3]) / 2]), np.array(h.points[0]))
            for scene in data.scenes
            for h in scene.normalised(*SIZE).heads
            if h.inout == IN
        ]

    train, val = heads(sets[0]), heads(sets[1])
    assert (found.heads, found.of, found.prior_heads) == (len(val), len(val), len(train))
    centre = np.mean([np.hypot(*(gaze - 0.5)) for _, gaze in val])
    prior = []
    for place, gaze in val:
        nearest = sorted(train, key=lambda other: float(np.sum((other[0] - place) ** 2)))[:50]
        prior.append(np.hypot(*(np.mean([g for _, g in nearest], axis=0) - gaze)))
    assert rows["centre"] is not None and rows["centre"].avg_l2 == pytest.approx(centre)
    assert rows["head-position prior"] is not None
    assert rows["head-position prior"].avg_l2 == pytest.approx(np.mean(prior))

    salient = MetricAccumulator()
    for scene in sets[1].scenes:
        seen = [h for h in scene.normalised(*SIZE).heads if h.inout == IN]
        maps = np.repeat(saliency_map(load_picture(scene.picture))[None], len(seen), axis=0)
        salient.add(maps, None, [HeadTruth(np.array(h.points), IN, *SIZE, box=h.box) for h in seen])
    assert rows["saliency"] == salient.result()
    # One scene is not enough for an interval.
    assert len(sets[1]) == 1 and all(bounds is None for row in found.rows[:-1] for bounds in row.intervals.values())
    assert (bounds := found.rows[-1].intervals["avg_l2"]) is not None and bounds.clusters == 2


def test_annotations_without_their_pictures_have_the_rows_that_need_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_gazefollow(tmp_path / "d", 40)
    whole = check_data(open_splits(data)).baselines
    for picture in data.rglob("*.jpg"):
        picture.unlink()
    for pictures in (False, True):
        found = check_data(open_splits(data), pictures=pictures).baselines
        assert found is not None and whole is not None and found.protocol == "gazefollow64" and found.heads == whole.heads
        for row, seen in zip(found.rows, whole.rows, strict=True):
            if row.name in ("head-position prior", "saliency"):
                assert (row.metrics, row.reason) == (None, "no picture opens")
                continue
            assert row.metrics is not None and seen.metrics is not None and (row.name, row.reason) == (seen.name, seen.reason)
            assert row.metrics.angle is None and row.intervals["angle"] is None
            for name in ("avg_l2", "avg_l2_mean_of", "min_l2"):
                assert getattr(row.metrics, name) == pytest.approx(getattr(seen.metrics, name), abs=1e-12)
            assert row.intervals["avg_l2"] == seen.intervals["avg_l2"]
    human, centre = found.rows[-1].metrics, found.rows[1].metrics
    assert human is not None and centre is not None and human.auc > centre.auc > 0  # type: ignore[operator]
    assert checked_command(str(data), "--no-pictures") == 0
    assert "AUC on 64×64 cells, as no picture opens" in " ".join(capsys.readouterr().out.split())
    # Points in pixels mean nothing without the pictures' sizes.
    video = write_vat(tmp_path / "v")
    for picture in video.rglob("*.jpg"):
        picture.unlink()
    assert check_data(open_splits(video), pictures=False).baselines is None


def test_test_split_alone_has_no_prior_unless_given_one(tmp_path: Path) -> None:
    write_gazefollow(tmp_path, 12)
    test = open_data(tmp_path, "test")
    alone = check_data([test]).baselines
    reason = "no training split apart from the scored one"
    assert alone is not None and [row.reason for row in alone.rows] == ["", "", reason, reason, "", ""]
    own = check_data([open_data(tmp_path, "trainval")]).baselines
    assert own is not None and own.prior_heads == 0 and [row.reason for row in own.rows[:5]] == ["", "", reason, reason, ""]
    with_prior = check_data([test], training=open_data(tmp_path, "train")).baselines
    assert with_prior is not None and all(row.metrics is not None for row in with_prior.rows)


def test_many_heads_are_thinned_and_the_number_is_told(tmp_path: Path) -> None:
    report = check_data(open_splits(write_gazefollow(tmp_path, 80)), baseline_heads=4)
    assert report.baselines is not None
    assert 0 < report.baselines.heads <= 4 < report.baselines.of
    metrics = report.baselines.rows[0].metrics
    assert metrics is not None and metrics.heads_in == report.baselines.heads


def test_unlabelled_pictures_have_no_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_data(open_splits(write_folder(tmp_path))).baselines is None
    assert checked_command(str(tmp_path)) == 0 and "No rows without a model" in capsys.readouterr().out


def test_video_uses_its_own_protocol(tmp_path: Path) -> None:
    found = check_data(open_splits(write_vat(tmp_path))).baselines
    assert found is not None and found.protocol == "vat" and found.heads == 22
