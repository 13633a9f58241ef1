"""The part of ``distill predict`` that is about videos."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.evaluation import GazeFunction
    from distill.video import VideoPrediction


def run_videos(options: argparse.Namespace, videos: list[Path], model: GazeFunction, name: str) -> list[VideoPrediction]:
    """Answer for every video in turn."""
    if not videos:
        return []
    from distill.console import progress
    from distill.detecting import CASCADES, open_detector
    from distill.errors import ConfigurationError
    from distill.video import VideoFile, predict_video

    twice = [stem for stem, count in Counter(path.stem for path in videos).items() if count > 1]
    if twice:
        raise ConfigurationError(f"two videos are called {twice[0]} and would be written to one file; give them in two calls with different --out")
    detector = open_detector(options.detector or CASCADES)
    results = []
    for path in videos:
        opened = VideoFile(path)
        total = opened.frames
        opened.close()
        with progress(path.name, total=total, unit="frames") as bar:
            results.append(
                predict_video(
                    model, name, path, detector, options.out, tau=options.smoothing, every=options.detect_every, overlays=options.overlays, advance=bar.update
                )
            )
    return results


def show_videos(results: list[VideoPrediction]) -> None:
    """A line a video, and where its files are."""
    from distill.console import counted, print_result, warn

    for result in results:
        amount = f"{counted(result.frames, 'frame')}, {counted(result.people, 'person', 'people')}, {counted(result.lines, 'answer')}"
        print_result(f"{result.video.name}: {amount} in {result.answers}")
        if result.overlay is not None:
            print_result(str(result.overlay))
        if result.missing:
            warn(f"{result.video} claims {counted(result.missing, 'frame')} more, which cannot be decoded: it is answered up to there")
        if not result.people:
            warn(f"no head was found in {result.video}; a detector of your own may find them: --detector FILE.onnx")
