"""From what the user writes (``gazefollow:/path``, or a path alone) to a :class:`~distill.scenes.SceneSet`."""

from __future__ import annotations

import difflib
import gc
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from urllib.parse import parse_qsl

from distill.errors import DataError
from distill.readers import childplay, folder, gazefollow, goo, vat
from distill.readers.findings import Findings
from distill.readers.reader import Reader
from distill.readers.unsupported import why_not
from distill.scenes import SceneSet

READERS: Mapping[str, Reader] = MappingProxyType(
    {reader.name: reader for reader in (gazefollow.READER, vat.READER, childplay.READER, goo.READER, folder.READER)}
)
_ALIASES = MappingProxyType({"videoattentiontarget": "vat", "gazefollow_extended": "gazefollow", "gooreal": "goo", "goo-real": "goo", "coco": "folder"})


def open_data(spec: str | Path, split: str = "train", *, strict: bool = False) -> SceneSet:
    """Read one split of a data set; pictures are not opened.

    Args:
        spec: ``reader:path``, with options after ``?`` (``folder:/pictures?heads=/boxes.csv``), or a path whose layout is
            recognised.
        split: ``train`` (the training file less the validation scenes carved from it), ``val`` (those), ``trainval`` (the
            whole training file), ``test``; a picture folder has the one split ``all``, which ``train`` means as well.
        strict: whether any finding is an error.

    Raises:
        DataError: unknown reader, option or split (the nearest names are offered), a data set of another reader (the
            right one is suggested), annotations that cannot be read (file, line and value are named), or no scenes.
    """
    reader, root, options = _resolve(spec)
    if split not in reader.splits:
        raise DataError(f"{reader.title} has no split {split!r}; choose one of {', '.join(reader.splits)}")
    data = _read(reader, root, options, split)
    if strict and data.findings:
        raise DataError(f"{_summary(data)} in {root}; mend the annotations, or read them without --strict")
    if not data.scenes:
        raise DataError(_empty(data))
    return data


def open_splits(spec: str | Path) -> list[SceneSet]:
    """Every split whose annotations are there, each once: train, val, test, or the one of a picture folder.

    A split may be empty, as the validation split of a single scene is. Raises :class:`DataError` as :func:`open_data`
    does, and when all are.
    """
    reader, root, options = _resolve(spec)
    found = [_read(reader, root, options, name) for name in reader.available(root) or reader.splits[:1]]
    if not any(found):
        raise DataError(_empty(found[0]))
    return found


def _read(reader: Reader, root: Path, options: Mapping[str, str], split: str) -> SceneSet:
    findings = Findings()
    with _without_cycle_collection():
        listing = reader.read(root, split, options, findings)
    return SceneSet(reader.name, root, listing.split, listing.scenes, findings.result(), listing.files)


@contextmanager
def _without_cycle_collection() -> Iterator[None]:
    """Records by the hundred thousand hold no cycles; looking for some doubles the time of reading them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _summary(data: SceneSet) -> str:
    return "; ".join(f"{finding.count} × {finding.name} ({finding.example})" for finding in data.findings)


def _empty(data: SceneSet) -> str:
    if data.findings:
        return f"split {data.split!r} of {data.root} has no scenes left after {_summary(data)}; mend the annotations"
    why = "; a validation split needs two scenes (or shows) or more" if data.split == "val" else ""
    return f"split {data.split!r} of {data.root} has no scenes{why}; give a data set with annotated heads"


def _resolve(spec: str | Path) -> tuple[Reader, Path, dict[str, str]]:
    text = str(spec)
    match = re.match(r"([A-Za-z][\w-]+):(.*)", text, re.DOTALL)
    if isinstance(spec, Path) or match is None or Path(text).exists():
        path, options = _split_options(text)
        if not path.exists():
            raise DataError(f"no data set at {path}: the folder does not exist; check the path")
        _refuse_file(path)
        reader = _recognised(path, text)
    else:
        name = match[1].lower()
        reader = _named(name)
        path, options = _split_options(match[2])
        if not path.exists():
            raise DataError(f"no data set at {path}: the folder does not exist; check the path after {match[1]}:")
        _refuse_file(path)
        _refuse_stranger(reader, path, options)
    for option in options:
        if option not in reader.options:
            known = f"its options are {', '.join(reader.options)}" if reader.options else "it has none"
            raise DataError(f"{reader.name} knows no option {option!r} (in {text!r}); {known}")
    return reader, path, options


def place_of(spec: str) -> Path:
    """Where a specification points, without its reader and options; nothing is opened, and it may not exist."""
    if Path(spec).exists():
        return Path(spec)
    path = re.sub(r"^[A-Za-z][\w-]+:", "", spec)
    return Path(path if Path(path).exists() else path.partition("?")[0]).expanduser()


def _split_options(text: str) -> tuple[Path, dict[str, str]]:
    path, mark, query = text.rpartition("?")
    # A question mark in a folder's name is not the start of options.
    if not mark or "=" not in query or Path(text).exists():
        return Path(text).expanduser(), {}
    return Path(path).expanduser(), dict(parse_qsl(query, keep_blank_values=True))


def _named(name: str) -> Reader:
    name = _ALIASES.get(name, name)
    if name not in READERS:
        near = difflib.get_close_matches(name, (*READERS, *_ALIASES), n=1, cutoff=0.5)
        hint = f"did you mean {_ALIASES.get(near[0], near[0])!r}? " if near else ""
        raise DataError(f"unknown reader {name!r}; {hint}known readers: {', '.join(READERS)}")
    return READERS[name]


def _recognised(path: Path, text: str) -> Reader:
    for reader in READERS.values():
        if reader.recognises(path):
            return reader
    if reason := why_not(path):
        raise DataError(reason)
    below = next(_below(path), None)
    if below is not None:
        raise DataError(f"{path} is no data set itself, but {below[1]} is; write {below[0].name}:{below[1]}")
    examples = ", ".join(reader.example for reader in READERS.values())
    raise DataError(f"{text}: no annotations of a known layout there; name the reader and its folder, e.g. {examples}")


def _refuse_file(path: Path) -> None:
    """Refuse a file where a folder is meant; one that is a data set's annotations leads to the data set."""
    if path.is_file():
        above = next(((reader, folder) for folder in list(path.parents)[:5] for reader in READERS.values() if reader.recognises(folder)), None)
        remedy = f"write {above[0].name}:{above[1]}" if above else "give the folder that holds the annotations and the pictures"
        raise DataError(f"{path} is a file, and a data set is a folder; {remedy}")


def _refuse_stranger(reader: Reader, path: Path, options: Mapping[str, str]) -> None:
    """Refuse a data set that another reader recognises and this one does not."""
    if reader.recognises(path) or options:
        return
    for other in READERS.values():
        if other.recognises(path):
            raise DataError(
                f"{path} is not {reader.title}: it looks like {other.title}; write {other.name}:{path} instead"
            )
    if reason := why_not(path):
        raise DataError(reason)
    for found, place in _below(path):
        if found is reader and reader.name != "folder":
            raise DataError(f"{path} holds no {reader.title}, but {place} does; write {reader.name}:{place}")


def _below(path: Path) -> Iterator[tuple[Reader, Path]]:
    """The data sets among the folders directly below ``path`` (the first 64 of them)."""
    for child in sorted(path.iterdir())[:64] if path.is_dir() else ():
        if child.is_dir():
            for reader in READERS.values():
                if reader.recognises(child):
                    yield reader, child
