"""One head of a heads file, whichever format the file has."""

from __future__ import annotations

from dataclasses import dataclass

from distill.scenes import Box

COLUMNS = ("image", "person", "xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, slots=True)
class HeadRow:
    """``box`` is xyxy with its corners in order, in ``pixels`` or else in [0,1], ``image`` the picture's path or name, ``person`` may be empty.

    ``place`` is where the row stands, for messages: ``heads.csv:5``. ``size`` is the (width, height) that the file states for the picture
    and counts the box's pixels in; None where it states none, and the picture's own size counts.
    """

    image: str
    person: str
    box: Box
    place: str
    size: tuple[int, int] | None = None
    pixels: bool = True
