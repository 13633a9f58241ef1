"""``distill bench decoders``: what it computes from times, and that it runs; times themselves are printed, never asserted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from distill import throughput
from distill.benchmarks import decoders
from distill.cli import main
from distill.decoder_speed import PeopleTimes, ratio, with_published_decoder
from students import export
from students.catalogue import STUDENTS
from teachers.model import ModelConfig
from tests.export_world import CONFIG, core_graph


def test_further_people_and_ratios_from_rounds() -> None:
    slow = PeopleTimes({1: [0.010, 0.020, 0.030], 9: [0.100, 0.100, 0.100]})
    quick = PeopleTimes({1: [0.005, 0.005, 0.005], 9: [0.005, 0.005, 0.005]})
    assert slow.ms(1) == pytest.approx(20) and slow.further == pytest.approx(10) and quick.further == 0
    assert slow.facts()["further_share"] == 0.5
    assert ratio(slow, quick, 1) == pytest.approx((4, 3, 5))


def test_a_rest_ends_when_the_threads_do(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    class Clock:
        """Threads that use processor time for the first ``busy`` sleeps."""

        busy = 3
        sleep = staticmethod(slept.append)

        @classmethod
        def process_time(cls) -> float:
            return 0.01 * min(len(slept), cls.busy)

    monkeypatch.setattr(throughput, "time", Clock)
    throughput.rest()
    assert slept == [throughput.REST] * 4
    slept.clear()
    Clock.busy = 1000
    throughput.rest()
    assert sum(slept) == pytest.approx(throughput.LONGEST_REST)


def test_only_the_decoder_differs() -> None:
    config = STUDENTS["hgnet_atto"]
    other = with_published_decoder(config)
    assert (other.decoder, other.dim, other.layers) == ("gazelle", 256, 3)
    assert (other.backbone, other.input_size, other.levels, other.inout) == (config.backbone, config.input_size, config.levels, config.inout)


def test_it_measures_both_sides(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("onnxruntime", "onnxscript"):
        pytest.importorskip(module)
    # Tracing two students takes most of a minute on a slow machine. What is timed here is one graph of the tiny student, twice; that students
    # with either decoder are written as such is for the tests of the export.
    written: list[ModelConfig] = []
    monkeypatch.setattr(export, "trace", lambda student, path: (written.append(student.config), shutil.copyfile(core_graph(), path)))
    tiny = replace(CONFIG, decoder="query", drop_path=0.0)
    monkeypatch.setitem(STUDENTS, "tiny", tiny)
    assert main(["bench", "decoders", "--students", "tiny", "--rounds", "5", "--threads", "1", "--json"]) == 0
    assert written == [with_published_decoder(tiny), tiny]
    facts = json.loads(capsys.readouterr().out)
    (student,) = facts["students"]
    assert set(student["gazelle"]["ms"]) == set(student["query"]["ms"]) == {"1", "5", "9"} and set(student["holds"]) == {"one", "five", "further"}
    decoders._print(facts)
    assert "times as fast" in capsys.readouterr().out


def test_it_wants_students_with_a_query_decoder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decoders", "--students", "lite0_tiny"]) == 2
    assert "lite0_tiny has no query decoder" in capsys.readouterr().err
    assert main(["bench", "decoders", "--rounds", "1"]) == 2
    assert "--rounds is 1" in capsys.readouterr().err
