"""What an artefact was made from: the chain from pictures and annotations to an exported file, and where it is broken.

Every artefact records the digests of what it was made from. Here they are read back, and what is cheap is computed again from
what lies on disk: the digest of annotations, of stored weights, of a cache's manifest and small tensors, of an exported file. Pictures are not
opened (`distill cache verify` does), and a shard's maps are not read.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from distill.errors import ConfigurationError, DataError

OK, CHANGED, ABSENT, UNCHECKED = "ok", "CHANGED", "not here", "not checked"


@dataclass(frozen=True)
class Link:
    """One link: ``what`` it is, its name, the digest that is recorded of it, and how that compares with the disk.

    ``what`` is "data", "teacher", "cache", "scenes", "backbone", "weights", "run" or "export". ``status`` is "ok", "CHANGED" (what is on disk is not what
    the next link was made from), "not here" (it cannot be found, so nothing was compared) or "not checked"; ``note`` says the rest.
    """

    what: str
    name: str
    digest: str
    status: str
    note: str = ""

    @property
    def state(self) -> str:
        """Status and note in one phrase."""
        return f"{self.status}: {self.note}" if self.note else self.status


@dataclass(frozen=True)
class Chain:
    """The lineage of ``path``, which is a ``kind``: "data set", "cache", "model", "run" or "export"; oldest link first."""

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
    if (path / "config.json").is_file():
        return Chain(text, "run", tuple(_run_links(path)))
    if (path / "cache.json").is_file():
        return Chain(text, "cache", tuple(_cache_links(path)))
    if (path / "model.json").is_file():
        inside_run = path.name == "student" and (path.parent / "config.json").is_file()
        return Chain(text, "model", tuple(_run_links(path.parent, exports=False) if inside_run else _model_links(path)))
    return Chain(text, "data set", tuple(_data_set_links(text, path)))


# -- data ---------------------------------------------------------------------------------------------------------------


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


def _data_link(spec: str, split: str, digest: str) -> Link:
    """The annotations that a run was trained on, against those that are there now."""
    from distill.readers import open_data
    from distill.readers.opening import place_of

    name = f"{spec} {split}".strip()
    if not spec:
        return Link("data", name or "unnamed", digest, UNCHECKED, "it is not recorded where it was")
    if not place_of(spec).exists():
        return Link("data", name, digest, ABSENT)
    try:
        found = open_data(spec, split)
    except DataError as error:
        return Link("data", name, digest, CHANGED, str(error))
    if found.digest() != digest:
        return Link("data", name, digest, CHANGED, f"the annotations there now have digest {found.digest()}")
    return Link("data", name, digest, OK, f"{len(found)} scenes; pictures are not opened")


# -- teacher and cache --------------------------------------------------------------------------------------------------


def _teacher_link(teacher: Mapping[str, Any], spec: str) -> Link:
    """The teacher that a cache states, against the weights of that name on disk."""
    from teachers.onnx_teacher import is_onnx, split_name

    name, digest = str(teacher.get("name", "unnamed")), str(teacher.get("weights", ""))
    if is_onnx(spec):
        return _onnx_link(name, digest, split_name(spec)[0])
    if teacher.get("architecture") == "onnx":
        return Link("teacher", name, digest, UNCHECKED, "an ONNX file, and it is not recorded where it was")
    directory = _teacher_directory(spec or name)
    if directory is None:
        return Link("teacher", name, digest, UNCHECKED, "made of several files")
    if not (directory / "model.json").is_file():
        return Link("teacher", name, digest, ABSENT, f"no stored model in {directory}")
    return _weights_link("teacher", name, digest, directory)


def _onnx_link(name: str, digest: str, file: Path) -> Link:
    """A black box against its file."""
    from teachers.errors import BlackBoxError
    from teachers.onnx_graph import read_graph

    if not file.is_file():
        return Link("teacher", name, digest, ABSENT, f"no file {file}")
    try:
        found = read_graph(file).digest
    except BlackBoxError as error:
        return Link("teacher", name, digest, CHANGED, str(error))
    return Link("teacher", name, digest, OK if found == digest else CHANGED, str(file) if found == digest else f"{file} has digest {found}")


def _teacher_directory(spec: str) -> Path | None:
    """Where a teacher of that name lies, whether or not it is there; nothing is fetched."""
    from teachers.catalogue import DEMO, store
    from teachers.published import CATALOGUE

    if spec.startswith("timm:"):
        return None
    if spec == "demo":
        return DEMO
    if spec in CATALOGUE:
        return store() / spec
    return Path(spec) / "student" if (Path(spec) / "student" / "model.json").is_file() else Path(spec)


def _weights_link(what: str, name: str, digest: str, directory: Path) -> Link:
    """A stored model's weights, digested again, against ``digest``."""
    from teachers.errors import WeightsError
    from teachers.weights import WEIGHTS, read_tensors, tensors_digest

    try:
        found = tensors_digest(read_tensors(directory / WEIGHTS))
    except WeightsError as error:
        return Link(what, name, digest, CHANGED, str(error))
    if found != digest:
        return Link(what, name, digest, CHANGED, f"{directory / WEIGHTS} has digest {found}")
    return Link(what, name, digest, OK, str(directory / WEIGHTS))


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
    built = _built_with(manifest.command)
    if data:
        yield _cached_data_link(reader, built.data or "")
    yield _teacher_link(manifest.teacher, built.teacher or "")
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


def _built_with(command: str) -> argparse.Namespace:
    """Data and teacher in the command line that a cache records."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--data")
    parser.add_argument("--teacher")
    return parser.parse_known_args(shlex.split(command))[0]


def _cached_data_link(reader: Any, spec: str) -> Link:
    """The boxes and gaze points that a cache was built with, scene by scene, against the annotations on disk."""
    from distill.readers import open_data
    from distill.readers.opening import place_of
    from distill.source import SceneSource
    from distill.views import ViewPolicy
    from teachers.errors import CacheError

    source = reader.source_identity
    split = str(source.get("split", ""))
    name = f"{spec or source.get('reader', 'unnamed')} {split}".strip()
    if not spec:
        return Link("data", name, "", UNCHECKED, "the cache does not record where it was")
    if not place_of(spec).exists():
        return Link("data", name, "", ABSENT)
    try:
        scenes = open_data(spec, split)
        reader.check_annotations(SceneSource(scenes, ViewPolicy(**source["views"])))
    except (DataError, CacheError) as error:
        return Link("data", name, "", CHANGED, str(error))
    except (KeyError, TypeError):
        return Link("data", name, scenes.digest(), UNCHECKED, "the cache is of a view policy that this version does not know")
    known = sum(reader.position(scene.key) is not None for scene in scenes.scenes)
    return Link("data", name, scenes.digest(), OK, f"{known} of {len(scenes)} scenes are in the cache, with these annotations")


# -- run, stored model, export ------------------------------------------------------------------------------------------


def _run_links(run: Path, *, exports: bool = True) -> Iterator[Link]:
    config = _read(run / "config.json")
    facts, data = _mapping(config, "facts"), _mapping(config, "data")
    made_of = _mapping(facts, "lineage")
    yield _data_link(str(data.get("data", "")), str(made_of.get("split", "train")), str(made_of.get("data", "")))
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
        yield _weights_link("run", str(run), digest, student)
    for beside in sorted((run / "exports").glob("*.json")) if exports else ():
        content = _read(beside)
        file = beside.with_name(str(content.get("file", f"{beside.stem}.onnx")))
        if file.is_file():
            yield _export_link(file, content, digest)


def _used_cache(run: Path, stated: str, made_of: Mapping[str, Any]) -> Iterator[Link]:
    """Teacher and cache of a run; a relative path is tried from here and from the directory that holds the run's ``runs``."""
    teacher = _mapping(made_of, "teacher")
    members = teacher.get("members")
    if isinstance(members, list):  # an ensemble's, in the order of its caches
        from teachers.cache.ensemble import split_spec

        for spec, member in zip_longest(stated.split(","), members, fillvalue=""):
            if isinstance(member, Mapping):
                yield from _used_cache(run, split_spec(spec.strip())[0], member)
        return
    places = [Path(stated), run.resolve().parent.parent / stated]
    found = next((place for place in places if stated and (place / "cache.json").is_file()), None)
    if found is None:
        yield _teacher_link(teacher, "")
        yield Link("cache", stated or "unnamed", str(made_of["cache"]), ABSENT)
        return
    yield from _cache_links(found, str(made_of["cache"]), data=False)


def _unlabelled(run: Path, data: Mapping[str, Any], made_of: Mapping[str, Any]) -> Iterator[Link]:
    """Pictures, teacher and cache of each unlabelled cache that a run learned from as well."""
    from teachers.cache.format import MANIFEST, Manifest
    from teachers.errors import CacheError

    caches = [part.strip() for part in str(data.get("unlabelled", "")).split(",")]
    places = [part.strip() for part in str(data.get("unlabelled_data", "")).split(",")]
    entries = made_of.get("unlabelled")
    for number, entry in enumerate(entries if isinstance(entries, list) else ()):
        cache = caches[number] if number < len(caches) else ""
        place = places[number] if number < len(places) else ""
        found = next((each for each in (Path(cache), run.resolve().parent.parent / cache) if (each / MANIFEST).is_file()), None)
        if found is not None and not place:
            with suppress(CacheError):  # told of by the cache's own link
                place = _built_with(Manifest.load(found).command).data or ""
        yield _data_link(place, str(entry.get("split", "")), str(entry.get("data", "")))
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
    yield _weights_link("weights", str(description.get("name", directory)), str(description.get("weights_digest", "")), directory)


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
    yield _export_link(file, content, student)


def _export_link(file: Path, content: Mapping[str, Any], student: str | None) -> Link:
    """An exported file against the JSON beside it, and against the student of its run."""
    from students.onnx_runtime import export_digest, export_files

    stated = str(content.get("digest", ""))
    if missing := [each.name for each in export_files(file) if not each.is_file()]:
        return Link("export", str(file), stated, CHANGED, f"{missing[0]} is not beside it")
    found = export_digest(file)
    if found != stated:
        return Link("export", str(file), stated, CHANGED, f"the file has digest {found}")
    source = str(content.get("weights_digest", ""))
    if student is not None and source != student:
        return Link("export", str(file), stated, CHANGED, f"exported from weights {source}, the run's student is now {student}: export it again")
    return Link("export", str(file), stated, OK, f"{sum(each.stat().st_size for each in export_files(file)) / 1e6:.1f} MB")


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
