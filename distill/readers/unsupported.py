"""Layouts that are known and not read, so that the message says what to get instead."""

from __future__ import annotations

from pathlib import Path


def why_not(root: Path) -> str:
    """What ``root`` holds and what to give instead, empty where nothing known is there."""
    if (root / "train_annotations.txt").is_file():
        return (
            f"{root} holds the 2015 release of GazeFollow (train_annotations.txt), which has no head boxes; get the extended release, whose files "
            "are train_annotations_release.txt and test_annotations_release.txt"
        )
    for name in ("train_preprocessed.json", "test_preprocessed.json"):
        if _begins_like_video(root / name):
            return (
                f"{root / name} is VideoAttentionTarget as Gaze-LLE prepares it; the published annotations are read and prepared here: lay "
                f"annotations/ and images/ into the folder and write vat:{root}"
            )
    return ""


def _begins_like_video(file: Path) -> bool:
    """Whether ``file`` is a list of clips with frames, not GazeFollow's list of pictures."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        start = stream.read(4096)
    return start.lstrip()[:1] == b"[" and b'"frames"' in start
