"""``distill bench metrics``: what it draws, what it says without scikit-learn; times are printed, never asserted."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from distill.benchmarks import metrics
from distill.cli import main


def test_the_kinds_of_maps_are_probabilities_and_differ() -> None:
    drawn = {kind: metrics.draw(kind, np.random.default_rng(0)) for kind in ("peaks", "smooth", "noisy")}
    for heatmap in drawn.values():
        assert heatmap.shape == (64, 64) and ((heatmap > 0) & (heatmap < 1)).all()
    rough = {kind: np.abs(np.diff(np.log(heatmap), axis=1)).mean() for kind, heatmap in drawn.items()}
    assert rough["smooth"] < rough["peaks"] < rough["noisy"]
    assert sum(share for _, _, share in metrics.KINDS) == pytest.approx(1.0)


def test_both_sides_score_the_same_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(metrics, "WIDTH", 80)
    monkeypatch.setattr(metrics, "HEIGHT", 60)
    reference = metrics._reference()
    found = metrics._compared("noisy", 3, 5, reference)
    assert found["largest_difference"] <= 1e-9 and found["median_ms"] > 0
    split = metrics._split(40)
    assert split["heads"] == 40 and split["test_split_s"] == pytest.approx(split["ms_per_head"] * 4.782, abs=0.02)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # the benchmark sets them for good, which is not for other tests
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    assert main(["bench", "metrics", "--quick"]) == 2
    assert "pip install scikit-learn" in capsys.readouterr().err
    assert main(["bench", "metrics", "--rounds", "2"]) == 2
    assert "--rounds is 2" in capsys.readouterr().err
