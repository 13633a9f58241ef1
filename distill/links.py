"""One link of a lineage: what is recorded of a data set, a teacher, stored weights or an exported file, against what lies on disk.

What is cheap is computed again: the digest of annotations, of stored weights, of an exported file. Pictures are not opened, and a
shard's maps are not read.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import DataError

OK, CHANGED, ABSENT, UNCHECKED = "ok", "CHANGED", "not here", "not checked"


@dataclass(frozen=True)
class Link:
    """One link: ``what`` it is, its name, the digest that is recorded of it, and how that compares with the disk.

    ``what`` is "data", "teacher", "cache", "scenes", "backbone", "weights", "run", "export" or "web page". ``status`` is "ok", "CHANGED" (what is on
    disk is not what the next link was made from), "not here" (it cannot be found, so nothing was compared) or "not checked"; ``note`` says the rest.
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


def data_link(spec: str, split: str, digest: str) -> Link:
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


def cached_data_link(reader: Any, spec: str) -> Link:
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


def built_with(command: str) -> argparse.Namespace:
    """Data and teacher in the command line that a cache records, as they are found from here."""
    from teachers.cache.command import words_of

    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--data")
    parser.add_argument("--teacher")
    return parser.parse_known_args(words_of(command))[0]


def teacher_link(teacher: Mapping[str, Any], spec: str) -> Link:
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
    return weights_link("teacher", name, digest, directory)


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


def weights_link(what: str, name: str, digest: str, directory: Path) -> Link:
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


def export_link(file: Path, content: Mapping[str, Any], student: str | None) -> Link:
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
