"""Pieces of the page: tables, numbers, pictures that carry their own pixels, and sentences for what is missing.

Every text that comes from a run is escaped here or where it is put into the page.
"""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

PICTURE_WIDTH = 640  # twice the width at which three stand side by side, for dense screens


def table(kind: str, caption: str, heads: Sequence[str], lines: Iterable[str], *, text: Sequence[int] = (0,)) -> str:
    """A table that scrolls sideways by itself where the screen is narrow; columns ``text`` stand to the left."""
    columns = "".join(
        f'<th scope="col"{" class=text" if i in text else ""}>{escape(head)}</th>' for i, head in enumerate(heads)
    )
    return (
        f'<div class="scroll {kind}" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption>"
        f"<thead><tr>{columns}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def empty(sentence: str, run_dir: Path, command: str) -> str:
    """A sentence in place of what is missing, with the command that brings it; ``--resume`` stands before the run."""
    verb, _, options = command.partition(" ")
    place = shlex.quote(str(run_dir))
    line = f"distill {verb} {options} {place}" if options == "--resume" else f"distill {verb} {place} {options}"
    return f'<p class="empty">{escape(sentence)} <code>{escape(line.strip())}</code></p>'


def img(picture: Image.Image, alt: str) -> str:
    """An ``img`` that carries its own pixels, no more of them than the page can show."""
    image = picture.convert("RGB")
    if image.width > PICTURE_WIDTH:
        height = max(1, round(image.height * PICTURE_WIDTH / image.width))
        image = image.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85, optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return (
        f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}" width="{image.width}" height="{image.height}" '
        'loading="lazy">'
    )


def plain(value: Any) -> str:
    """A value in words, not yet escaped."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not set"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def number_cell(value: float | None, digits: int) -> str:
    """A number with a fixed number of decimals, or n/a."""
    return '<span class="soft">n/a</span>' if value is None else f"{value:.{digits}f}"


def millions(count: int | None) -> str:
    """A count of parameters: 88.8 M, 12.0 k, 512."""
    if count is None:
        return number_cell(None, 0)
    if count >= 100_000:
        return f"{count / 1e6:.1f} M"
    return f"{count / 1e3:.1f} k" if count >= 1000 else str(count)
