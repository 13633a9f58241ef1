"""What an artefact was made from: the chain from pictures and annotations to an exported file, and where it is broken.

Every artefact records the digests of what it was made from. Here they are read back and put in order; :mod:`distill.links` compares each with
the disk.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from distill.errors import ConfigurationError, DataError
from distill.links import (
    ABSENT,
    CHANGED,
    OK,
    UNCHECKED,
    Link,
    built_with,
    cached_data_link,
    data_link,
    export_link,
    teacher_link,
    weights_link,
)


@dataclass(frozen=True)
class Chain:
    """The lineage of ``path``, which is a ``kind``: "data set", "cache", "model", "run", "export" or "web page"; oldest link first."""

    path: str
    kind: str
    links: tuple[Link, ...]

    @property
    def whole(self) -> bool:
        """Whether no link was found to be changed."""
        return all(link.status != CHANGED for link in self.links)


def lineage(text: str) -> Chain:
    """The chain that ends at ``text``: a run, a cache, a stored model, an exported file, or a data set as for ``--data``.

    Raises:
        ConfigurationError: ``text`` is none of these; the nearest names, or what lies below it, are offered.
    """
    path = Path(text).expanduser()
    if path.suffix in (".onnx", ".pt2", ".xml", ".tflite", ".mlpackage") and path.exists():
        return Chain(text, "export", tuple(_export_links(path)))
    from distill.web_lineage import is_web_folder, web_links

    if is_web_folder(path):
        return Chain(text, "web page", tuple(web_links(path, partial(_run_links, exports=False), _stated_links)))
    if (path / "config.json").is_file():
        return Chain(text, "run", tuple(_run_links(path)))
    if (path / "cache.json").is_file():
        return Chain(text, "cache", tuple(_cache_links(path)))
    if (path / "model.json").is_file():
        inside_run = path.name == "student" and (path.parent / "config.json").is_file()
        return Chain(text, "model", tuple(_run_links(path.parent, exports=False) if inside_run else _model_links(path)))
    return Chain(text, "data set", tuple(_data_set_links(text, path)))


# -- a data set and what is no artefact ---------------------------------------------------------------------------


def _data_set_links(text: str, path: Path) -> Iterator[Link]:
    from distill.readers import open_splits

    named = re.match(r"[A-Za-z][\w-]+:", text) is not None and not path.exists()
    if not named and not path.exists():
        raise ConfigurationError(f"{path} does not exist; {_nearest(path)}")
    try:
        splits = open_splits(text)
    except DataError as error:
        if named:
            raise
        below = _artefacts_below(path) if path.is_dir() else []
        hint = f"below it there are {', '.join(below)}" if below else f"as a data set: {error}"
        raise ConfigurationError(f"{path} is no run, cache, stored model, exported file or data set; {hint}") from None
    for scenes in splits:
        heads = sum(len(scene.heads) for scene in scenes.scenes)
        note = f"{len(scenes)} scenes, {heads} heads; pictures are not opened"
        yield Link("data", f"{scenes.reader}:{scenes.root} {scenes.split}", scenes.digest(), OK, note)


def _nearest(path: Path) -> str:
    siblings = sorted(each.name for each in path.parent.iterdir()) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.5)
    if near:
        return f"nearest: {', '.join(str(path.parent / name) for name in near)}"
    return "give a run, a cache, a stored model, an exported .onnx file, or a data set"


def _artefacts_below(path: Path) -> list[str]:
    marks = ("config.json", "cache.json", "model.json")
    found = [str(child) for child in sorted(path.iterdir()) if any((child / mark).is_file() for mark in marks)]
    return [*found, *map(str, sorted(path.glob("*.onnx")))][:6]


# -- cache ---------------------------------------------------------------------------------------------------------


def _cache_links(path: Path, recorded: str | None = None, *, data: bool = True) -> Iterator[Link]:
    """Data, teacher and cache; ``recorded`` is the identity that a run states, and ``data`` whether to compare annotations."""
    from teachers.cache.reader import CacheReader
    from teachers.errors import CacheError

    try:
        reader = CacheReader(path)
    except CacheError as error:
        yield Link("cache", str(path), recorded or "", CHANGED, str(error))
        return
    manifest = reader.manifest
    built = built_with(manifest.command)
    if data:
        yield cached_data_link(reader, built.data or "")
    yield teacher_link(manifest.teacher, built.teacher or "")
    identity = manifest.identity_digest()
    if recorded is not None and recorded != identity:
        yield Link("cache", str(path), recorded, CHANGED, f"the cache there now is {identity}")
        return
    missing = len(reader.missing_shards())
    counts = f"{reader.scenes} scenes x {reader.views} views"
    try:
        rows = f"{reader.rows()} rows"
    except CacheError as error:
        yield Link("cache", str(path), identity, CHANGED, str(error))
        return
    if missing:
        counts += f", {missing} of {manifest.shards} shards not built yet"
    yield Link("cache", str(path), identity, OK, f"{counts}, {rows}; maps are checked by `distill cache verify`")


# -- run, stored model, export --------------------------------------------------------------------------------------


def _run_links(run: Path, *, exports: bool = True) -> Iterator[Link]:
    config = _read(run / "config.json")
    facts, data = _mapping(config, "facts"), _mapping(config, "data")
    made_of = _mapping(facts, "lineage")
    yield data_link(str(data.get("data", "")), str(made_of.get("split", "train")), str(made_of.get("data", "")))
    if "cache" in made_of:
        yield from _used_cache(run, str(data.get("cache", "")), made_of)
    yield from _unlabelled(run, data, made_of)
    scenes = _mapping(facts, "scenes")
    if scenes.get("unlabelled"):
        told = ", ".join(f"{count} {str(kind).replace('_', ' ')}" for kind, count in scenes.items())
        yield Link("scenes", told, "", UNCHECKED, "as the run counted them")
    yield from _backbone(facts)
    student = run / "student"
    if not (student / "model.json").is_file():
        yield Link("run", str(run), "", UNCHECKED, "no student yet: the first validation writes it")
        return
    description = _read(student / "model.json")
    digest = str(description.get("weights_digest", ""))
    recorded = _mapping(_mapping(description, "facts"), "lineage")
    if recorded != made_of:
        differing = sorted(key for key in {*recorded, *made_of} if recorded.get(key) != made_of.get(key))
        yield Link("run", str(run), digest, CHANGED, f"its student states another {', '.join(differing)} than its config.json")
    else:
        yield weights_link("run", str(run), digest, student)
    for beside in sorted((run / "exports").glob("*.json")) if exports else ():
        content = _read(beside)
        file = beside.with_name(str(content.get("file", f"{beside.stem}.onnx")))
        if file.exists():  # a Core ML package is a folder
            yield export_link(file, content, digest)
    if exports:
        from distill.web_lineage import page_links

        yield from page_links(run / "exports", digest)


def _used_cache(run: Path, stated: str, made_of: Mapping[str, Any]) -> Iterator[Link]:
    """Teacher and cache of a run; a relative path is tried from here and from the directory that holds the run's ``runs``."""
    teacher = _mapping(made_of, "teacher")
    members = teacher.get("members")
    if isinstance(members, list):  # an ensemble's, in the order of its caches
        for spec, member in zip(_parted(stated, len(members), run), members, strict=True):
            if isinstance(member, Mapping):
                yield from _used_cache(run, spec, member)
        return
    found = _cache_at(stated, run)
    if found is None:
        yield teacher_link(teacher, "")
        yield Link("cache", stated or "unnamed", str(made_of["cache"]), ABSENT)
        return
    yield from _cache_links(found, str(made_of["cache"]), data=False)


def _cache_at(stated: str, run: Path) -> Path | None:
    """The cache that a run names, with a weight or without: from here, or from the directory that holds the run's ``runs``."""
    from teachers.cache.ensemble import split_spec
    from teachers.errors import CacheError

    with suppress(CacheError):  # what is behind its colon is no weight: a name of something else
        bare = split_spec(stated)[0]
        places = [place for name in (stated, bare) for place in (Path(name).expanduser(), run.resolve().parent.parent / name)]
        return next((place for place in places if stated and (place / "cache.json").is_file()), None)
    return None


def _parted(stated: str, count: int, run: Path) -> list[str]:
    """``A:0.6,B:0.4`` as the ``count`` caches that it names, though a comma may belong to the path of one."""
    parts, found = stated.split(","), list[str]()
    while parts and len(found) < count:
        # The longest name of a cache that is there, as long as it leaves something to each of the others.
        longest = len(parts) - (count - len(found)) + 1
        there = (size for size in range(longest, 0, -1) if _cache_at(",".join(parts[:size]).strip(), run) is not None)
        taken = longest if len(found) == count - 1 else next(there, 1)
        found.append(",".join(parts[:taken]).strip())
        parts = parts[taken:]
    return [*found, *[""] * (count - len(found))]


def _unlabelled(run: Path, data: Mapping[str, Any], made_of: Mapping[str, Any]) -> Iterator[Link]:
    """Pictures, teacher and cache of each unlabelled cache that a run learned from as well."""
    from teachers.cache.format import Manifest
    from teachers.errors import CacheError

    stated = made_of.get("unlabelled")
    entries = stated if isinstance(stated, list) else []
    caches = _parted(str(data.get("unlabelled", "")), len(entries), run)
    places = [part.strip() for part in str(data.get("unlabelled_data", "")).split(",")]
    for number, (cache, entry) in enumerate(zip(caches, entries, strict=True)):
        place = places[number] if number < len(places) else ""
        found = _cache_at(cache, run)
        if found is not None and not place:
            with suppress(CacheError):  # told of by the cache's own link
                place = built_with(Manifest.load(found).command).data or ""
        yield data_link(place, str(entry.get("split", "")), str(entry.get("data", "")))
        yield from _used_cache(run, cache, entry)


def _backbone(facts: Mapping[str, Any]) -> Iterator[Link]:
    """The weights that a student began with."""
    begun = facts.get("backbone_weights")
    if isinstance(begun, Mapping):
        yield Link("backbone", str(begun.get("source", "unnamed")), str(begun.get("digest", "")), UNCHECKED, "pretrained, as loaded")
    elif begun is not None:
        yield Link("backbone", str(begun), "", OK, "no pretrained weights")
    if "student_weights" in facts:
        yield Link("backbone", "a stored student", str(facts["student_weights"]), UNCHECKED, "the whole student began from it")


def _stated_links(made_of: Mapping[str, Any]) -> Iterator[Link]:
    """What a run recorded, where the run itself is not at hand."""
    note = "as the run recorded it, which is not here"
    if "data" in made_of:
        yield Link("data", f"{made_of.get('reader', '')} {made_of.get('split', '')}".strip(), str(made_of["data"]), UNCHECKED, note)
    if "cache" in made_of:
        teacher = _mapping(made_of, "teacher")
        yield Link("teacher", str(teacher.get("name", "unnamed")), str(teacher.get("weights", "")), UNCHECKED, note)
        yield Link("cache", "unnamed", str(made_of["cache"]), UNCHECKED, note)


def _model_links(directory: Path) -> Iterator[Link]:
    """A stored model that lies in no run: what it states of its making, and its weights."""
    description = _read(directory / "model.json")
    facts = _mapping(description, "facts")
    yield from _stated_links(_mapping(facts, "lineage"))
    yield from _backbone(facts)
    if "source" in facts:
        yield Link("weights", str(facts["source"]), "", UNCHECKED, f"licence {facts.get('licence', 'not stated')}")
    yield weights_link("weights", str(description.get("name", directory)), str(description.get("weights_digest", "")), directory)


def _export_links(file: Path) -> Iterator[Link]:
    beside = file.with_suffix(".json")
    if not beside.is_file():
        yield Link("export", str(file), "", UNCHECKED, f"{beside.name} is not beside it: nothing is recorded of its making")
        return
    content = _read(beside)
    run = file.resolve().parent.parent
    student: str | None = None
    if (run / "config.json").is_file() and file.parent.name == "exports":
        for link in _run_links(run, exports=False):
            student = link.digest if link.what == "run" else student
            yield link
    else:
        yield from _stated_links(_mapping(content, "lineage"))
        yield Link("run", str(content.get("name", "unnamed")), str(content.get("weights_digest", "")), ABSENT, "exported elsewhere")
    yield export_link(file, content, student)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path} cannot be read ({error}); restore it, or make the artefact again") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} holds no JSON object; restore it, or make the artefact again")
    return content


def _mapping(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = content.get(name)
    return value if isinstance(value, Mapping) else {}
