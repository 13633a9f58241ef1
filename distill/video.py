"""Predictions on a video: heads found in every frame, people followed, answers smoothed, drawn and written.

For ``clip.mov`` these appear in the output folder, both when every frame is done:

``clip_gaze.jsonl``
    one line a person and frame: ``video``, ``frame`` (from 0), ``seconds``, ``person`` (a number that a person keeps), ``box`` xyxy in pixels,
    ``point`` xy in pixels, ``point_normalised`` xy in [0,1), ``inout``, ``peak``, ``model``; smoothed as :mod:`distill.tracking` says. Points are
    the highest cell's index over the grid's size.
``clip_gaze.mp4``
    the frames with everybody drawn, MPEG-4 by OpenCV's writer, without sound.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.errors import ConfigurationError, MetricError, PictureError
from distill.exporting import require_extra
from distill.metrics import sigmoid
from distill.tracking import Track, Tracker
from distill.workshop import workshop

if TYPE_CHECKING:
    from distill.detecting import HeadDetector
    from distill.evaluation import GazeFunction

SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
RATE = 25.0  # frames a second of a file that does not say


@dataclass(frozen=True)
class VideoPrediction:
    """What was written for one video, and how much there was in it: frames, people, lines.

    ``missing`` is the number of frames that the file claims beyond the last one that could be decoded.
    """

    video: Path
    answers: Path
    overlay: Path | None
    frames: int
    people: int
    lines: int
    missing: int = 0


def is_video(path: Path) -> bool:
    """Whether the file is a video by its name."""
    return path.suffix.lower() in SUFFIXES


def videos_below(folder: Path, out: Path) -> list[Path]:
    """The videos in ``folder`` itself, sorted; none where it is no folder, or the one that answers are written to."""
    if not folder.is_dir() or folder.resolve() == out.resolve():
        return []
    return sorted(path for path in folder.iterdir() if is_video(path) and not path.name.startswith("."))


class VideoFile:
    """An opened video: ``rate`` in frames a second, ``frames`` as the file claims (0 where it does not), and its frames one by one.

    Raises :class:`PictureError` for a file that is missing, or of which no frame can be decoded.
    """

    def __init__(self, path: Path) -> None:
        require_extra("detect", "cv2")
        # FFmpeg's own lines about a damaged file would stand between ours; -8 is its "quiet". Read when OpenCV first opens a video.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        import cv2

        if not path.is_file():
            raise PictureError(f"video {path} does not exist; check the path")
        self.path, self._capture = path, cv2.VideoCapture(str(path))
        good, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not good or first is None:
            self._capture.release()
            raise PictureError(f"video {path} cannot be decoded; convert it, e.g. with `ffmpeg -i {path.name} -c:v libx264 {path.stem}_h264.mp4`")
        self._first = first
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.rate = rate if np.isfinite(rate) and 0 < rate <= 1000 else RATE
        self.frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames ``[H,W,3]`` uint8 RGB, until the first one that cannot be decoded."""
        frame: np.ndarray | None = self._first
        while frame is not None:
            yield np.ascontiguousarray(frame[..., ::-1])
            good, following = self._capture.read()
            frame = following if good else None

    def close(self) -> None:
        """Let the file go."""
        self._capture.release()


def predict_video(
    model: GazeFunction,
    name: str,
    path: Path,
    detector: HeadDetector,
    out: Path,
    *,
    tau: float = 0.25,
    every: int = 1,
    overlays: bool = True,
    advance: Callable[[int], Any] | None = None,
) -> VideoPrediction:
    """Answer for everybody in the video at ``path`` and write what the module's docstring describes to ``out``.

    ``tau`` is the time constant of the smoothing in seconds; heads are looked for in each ``every``-th frame and keep their box in between.
    ``advance(1)`` is called for each frame. Raises :class:`PictureError` for a video that cannot be decoded, :class:`ConfigurationError` where it
    cannot be written, :class:`MetricError` for answers that are not finite; files of an earlier call stay then.
    """
    video = VideoFile(path)
    tracker = Tracker(tau)
    frames = lines = 0
    people: set[int] = set()
    answers, drawn = f"{path.stem}_gaze.jsonl", f"{path.stem}_gaze.mp4"
    if (out / drawn).resolve() == path.resolve():
        raise ConfigurationError(f"{path} is the video given and the one to be written; choose another --out")
    writer: Any = None
    try:
        with workshop(out) as bench:
            with (bench / answers).open("w", encoding="utf-8") as file:
                for frame in video:
                    time = frames / video.rate
                    tracks = tracker.boxes(detector(frame), time) if frames % every == 0 else tracker.tracks
                    _answer(model, frame, tracks, tracker, time, path)
                    for track in tracks:
                        line = _line(track, frame, path, frames, time, name)
                        file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
                        people.add(track.number)
                        lines += 1
                    if overlays:
                        writer = writer or _writer(bench / drawn, frame, video.rate)
                        writer.write(_drawn(frame, tracks)[..., ::-1])
                    frames += 1
                    if advance is not None:
                        advance(1)
            if writer is not None:
                writer.release()
            for file_name in (*([drawn] if overlays else []), answers):
                os.replace(bench / file_name, out / file_name)
    finally:
        video.close()
    return VideoPrediction(path, out / answers, out / drawn if overlays else None, frames, len(people), lines, max(0, video.frames - frames))


def _answer(model: GazeFunction, frame: np.ndarray, tracks: list[Track], tracker: Tracker, time: float, path: Path) -> None:
    """One call of the model for everybody in the frame."""
    if not tracks:
        return
    import torch

    from distill.views import IDENTITY

    height, width = frame.shape[:2]
    boxes = np.array([track.box for track in tracks]) / np.array([width, height, width, height])
    with torch.inference_mode():
        output = model(
            IDENTITY.picture(frame, model.input_size)[None], torch.from_numpy(boxes.astype(np.float32)), torch.zeros(len(tracks), dtype=torch.int64)
        )
    heatmaps = sigmoid(output.heatmap.float().cpu().numpy())
    inout = None if output.inout is None else sigmoid(output.inout.float().cpu().numpy())
    if not np.isfinite(heatmaps).all() or (inout is not None and not np.isfinite(inout).all()):
        raise MetricError(f"{path}, second {time:.2f}: the model's answer is not finite; use an earlier checkpoint")
    for number, track in enumerate(tracks):
        tracker.answer(track, heatmaps[number], None if inout is None else float(inout[number]), time)


def _point(track: Track) -> tuple[float, float]:
    assert track.heatmap is not None
    rows, columns = track.heatmap.shape
    row, column = divmod(int(track.heatmap.argmax()), columns)
    return column / columns, row / rows


def _line(track: Track, frame: np.ndarray, path: Path, number: int, time: float, name: str) -> dict[str, Any]:
    assert track.heatmap is not None
    height, width = frame.shape[:2]
    x, y = _point(track)
    return {
        "video": path.name, "frame": number, "seconds": round(time, 4), "person": str(track.number),
        "box": [round(value, 3) for value in track.box], "point": [round(x * width, 3), round(y * height, 3)],
        "point_normalised": [x, y], "inout": track.inout, "peak": float(track.heatmap.max()), "model": name,
    }


def _drawn(frame: np.ndarray, tracks: list[Track]) -> np.ndarray:
    from distill.overlay import PALETTE, Person, Style, overlay

    height, width = frame.shape[:2]
    people = []
    for track in tracks:
        assert track.heatmap is not None
        x0, y0, x1, y1 = track.box
        x, y = _point(track)
        rows, columns = track.heatmap.shape
        people.append(
            Person(
                box=(x0 / width, y0 / height, x1 / width, y1 / height), heatmap=track.heatmap, point=(x + 0.5 / columns, y + 0.5 / rows),
                inout=track.inout, name=str(track.number),
            )
        )
    # A person keeps their colour while others come and go.
    palette = tuple(PALETTE[(track.number - 1) % len(PALETTE)] for track in tracks) or PALETTE
    return np.asarray(overlay(frame, people, style=Style(palette=palette, tint=True)))


def _writer(path: Path, frame: np.ndarray, rate: float) -> Any:
    import cv2

    height, width = frame.shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
    if not writer.isOpened():
        raise ConfigurationError(f"OpenCV cannot write {width} x {height} MPEG-4 to {path.parent.parent}; use --no-overlays for answers alone")
    return writer
