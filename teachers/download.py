"""Downloads: whole or not at all."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from teachers.errors import WeightsError


def fetch(url: str, path: Path) -> None:
    """Download ``url`` to ``path``, whole or not at all; without a network the error says where to put the file by hand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=30) as answer, temporary.open("wb") as file:
            expected = int(answer.headers.get("Content-Length", 0))
            while block := answer.read(1 << 20):
                file.write(block)
        if expected and temporary.stat().st_size != expected:
            raise WeightsError(f"{url} ended after {temporary.stat().st_size} of {expected} bytes; run the command again")
        os.replace(temporary, path)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = " ".join(str(error).split())[:140] or type(error).__name__
        raise WeightsError(f"{url} could not be fetched ({reason}); download it elsewhere and put it at {path}") from None
    finally:
        temporary.unlink(missing_ok=True)
