"""What an exported web page was made from, read back from the ``web.json`` that lies in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.errors import ConfigurationError
from distill.links import ABSENT, CHANGED, OK, UNCHECKED, Link
from distill.web_export import PAGE, RECORD


def is_web_folder(path: Path) -> bool:
    """Whether ``path`` is a folder that ``distill export --format web`` wrote."""
    return (path / RECORD).is_file() and any((path / name).is_file() for name in PAGE)


def web_links(folder: Path, of_run: Callable[[Path], Iterable[Link]], as_stated: Callable[[Mapping[str, Any]], Iterable[Link]]) -> Iterator[Link]:
    """The chain that ends at the page in ``folder``.

    ``of_run`` gives the links of a run's directory, its student's last; ``as_stated`` those that a recorded lineage names, for a page whose run is
    not at hand. Raises :class:`ConfigurationError` for a record that cannot be read.
    """
    model = _model(_record(folder))
    exports = folder.resolve().parent
    run = exports.parent
    student: str | None = None
    if exports.name == "exports" and (run / "config.json").is_file():
        for link in of_run(run):
            student = link.digest if link.what == "run" else student
            yield link
    else:
        made_of = model.get("lineage")
        yield from as_stated(made_of if isinstance(made_of, Mapping) else {})
        yield Link("run", str(model.get("name", "unnamed")), str(model.get("weights_digest", "")), ABSENT, "exported elsewhere")
    yield page_link(folder, student)


def page_links(exports: Path, student: str) -> Iterator[Link]:
    """A link for each page in the folder ``exports`` of a run whose student's weights have the digest ``student``."""
    for record in sorted(exports.glob(f"*/{RECORD}")):
        yield page_link(record.parent, student)


def page_link(folder: Path, student: str | None) -> Link:
    """The page's files against ``web.json``, and its model against the run's ``student`` (None: not known); its digest is the model's."""
    from students.onnx_runtime import file_digest

    record = _record(folder)
    model, stated = _model(record), record.get("files")
    digest = str(model.get("digest", ""))
    if not isinstance(stated, Mapping):
        return Link("web page", str(folder), digest, UNCHECKED, f"its {RECORD} has no digests of files; export it again")
    for name, wanted in stated.items():
        if not (folder / name).is_file():
            return Link("web page", str(folder), digest, CHANGED, f"{name} is not in it")
        if file_digest(folder / name) != wanted:
            return Link("web page", str(folder), digest, CHANGED, f"{name} is not the file that was exported")
    source = str(model.get("weights_digest", ""))
    if student is not None and source != student:
        return Link("web page", str(folder), digest, CHANGED, f"exported from weights {source}, the run's student is now {student}: export it again")
    runtime = record.get("runtime")
    version = runtime.get("version", "of unknown version") if isinstance(runtime, Mapping) else "of unknown version"
    size = sum((folder / name).stat().st_size for name in stated)
    return Link("web page", str(folder), digest, OK, f"{model.get('precision', '')} model, ONNX Runtime Web {version}, {size / 1e6:.1f} MB")


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path} cannot be read ({error}); export the page again") from None
    if not isinstance(record, dict) or record.get("format") != "web":
        raise ConfigurationError(f"{path} does not describe an exported web page; export the page again")
    return record


def _model(record: Mapping[str, Any]) -> Mapping[str, Any]:
    model = record.get("model")
    return model if isinstance(model, Mapping) else {}
