"""Where the toolkit keeps what it fetched or measured for its user: teachers, the web page's runtime, sizes, times."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """``$GAZE_DISTILL_HOME``, ``~`` in it expanded; by default ``~/.cache/gaze-distill``. It need not exist."""
    given = os.environ.get("GAZE_DISTILL_HOME")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "gaze-distill"
