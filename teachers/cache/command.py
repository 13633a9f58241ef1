"""The command line that a cache records: what it was asked for, and in which directory.

``cd DIRECTORY && distill cache build --data data ...``: words as they were typed, so that a tree of data, teachers and caches that is moved as a
whole still fits together; and the directory, so that a remedy can be pasted anywhere. Caches of earlier versions have no ``cd``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode

# Options whose values are paths, or hold one behind a prefix (``gazefollow:data``, ``onnx:model.onnx``).
PATHS = ("--data", "--teacher", "--weights", "--backbone-weights", "--adapter")


def recorded_command(words: Sequence[str], directory: Path | None = None) -> str:
    """``words`` as a cache records them, typed in ``directory`` (the current one)."""
    return f"cd {shlex.quote(str(directory or Path.cwd()))} && {shlex.join(words)}"


def split_command(command: str) -> tuple[Path | None, list[str]]:
    """(the directory that a recorded command was typed in, its words)."""
    words = shlex.split(command)
    if len(words) > 2 and (words[0], words[2]) == ("cd", "&&"):
        return Path(words[1]), words[3:]
    return None, words


def words_of(command: str, *, anywhere: bool = False) -> list[str]:
    """A recorded command's words; a relative path that is not here but where the command was typed becomes absolute.

    With ``anywhere`` every path that is found becomes absolute: the words can then be run in any directory.
    """
    directory, words = split_command(command)
    places = [Path.cwd(), *([directory] if directory is not None else [])]
    for number, option in enumerate(words[:-1]):
        if option in PATHS:
            words[number + 1] = _placed(words[number + 1], option, places, anywhere)
    return words


def _placed(value: str, option: str, places: Sequence[Path], anywhere: bool) -> str:
    """An option's value whose paths are found from the first of ``places`` where they are."""
    if not (anywhere or len(places) > 1) or (option == "--teacher" and _names_no_path(value)):
        return value
    if not _is_there(value, places):
        prefix, name = _after_prefix(value)
        path, mark, query = name.partition("?")
        if not prefix and not mark:
            return value
        options = [(key, _found(part, places, anywhere) if key in ("heads", "adapter") else part) for key, part in parse_qsl(query, True)]
        same = options == parse_qsl(query, True)
        return prefix + _found(path, places, anywhere) + mark + (query if same else urlencode(options, safe="/:", quote_via=quote))
    return _found(value, places, anywhere)


def _after_prefix(value: str) -> tuple[str, str]:
    match = re.match(r"[A-Za-z][\w-]+:", value)
    return (match[0], value[match.end() :]) if match else ("", value)


def _is_there(value: str, places: Sequence[Path]) -> bool:
    return any((place / value).exists() for place in places)


def _found(value: str, places: Sequence[Path], anywhere: bool) -> str:
    """A path as it is, or absolute: where it is first found."""
    if not value or value.startswith("~") or Path(value).is_absolute():
        return value
    for number, place in enumerate(places):
        if (place / value).exists():
            # The first place is here.
            return str(place / value) if number or anywhere else value
    return value


def _names_no_path(teacher: str) -> bool:
    """Whether a teacher's name is the catalogue's, though a directory may be called the same."""
    if teacher.startswith("timm:"):
        return True
    if "/" in teacher or "\\" in teacher or ":" in teacher:
        return False
    # It brings torch, which opening a cache does not need: asked only where it matters.
    from teachers.published import CATALOGUE

    return teacher == "demo" or teacher in CATALOGUE
