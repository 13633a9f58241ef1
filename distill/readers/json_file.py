"""JSON annotation files, some of a hundred megabytes: parsed by msgspec, and by the standard library where msgspec refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from distill.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_json(file: Path, remedy: str, error: type[DataError] = DataError) -> Any:
    """What ``file`` holds, with or without a byte order mark; ``NaN`` and ``Infinity`` are read as Python writes them.

    Raises ``error`` with the place of the defect and the ``remedy`` for what is no JSON.
    """
    content = file.read_bytes().removeprefix(_BYTE_ORDER_MARK)
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # It knows no NaN, which Python's writers put into files; and what is wrong is said in the words that users of Python know.
        try:
            return json.loads(content.decode())
        except (ValueError, RecursionError) as cause:
            raise error(f"{file}: not readable as JSON ({cause}); {remedy}") from None
