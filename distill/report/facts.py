"""What a report says beside the curves: models compared, exported files, lineage, gallery.

All of it is gathered from a run's directory. Files read, each of them optional:

``eval.json``
    ``{"data": str, "machine": str, "rows": [row, ...]}``, a row with the fields of :class:`ModelRow`; written by
    :func:`save_rows`. What else it holds (:meth:`distill.scorecard.Scorecards.facts`) the report does not need.
``exports/*.json``
    one beside each exported file: ``{"file": name, "format": str, "parity": {name: number, ...}}``. Without ``file``
    the exported file is the one of the same name and another suffix. Its size is taken from the disk.
``lineage.json``
    ``{"rows": [row, ...]}``, a row with the fields of :class:`LineageRow`, from the data to the export.
``gallery/``
    see :mod:`distill.report.gallery`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from distill.report.errors import ReportError
from distill.report.gallery import GalleryItem, load_gallery
from distill.report.records import number, read_object

ROLES = ("", "baseline", "teacher", "student")


@dataclass(frozen=True)
class ModelRow:
    """One line of the comparison. ``role`` is "baseline", "teacher", "student" or "".

    ``megabytes`` are 10⁶ bytes of weights as they ship, ``ms`` milliseconds per picture, distances are in [0,1] of the
    picture's sides. None is printed as n/a.
    """

    name: str
    role: str = ""
    parameters: int | None = None
    megabytes: float | None = None
    ms: float | None = None
    auc: float | None = None
    avg_l2: float | None = None
    min_l2: float | None = None
    ap: float | None = None


@dataclass(frozen=True)
class ExportFacts:
    """An exported file: its path, format, bytes, and by what it differs from the student it was made from."""

    path: Path
    format: str
    bytes: int
    parity: Mapping[str, float | str | bool]


@dataclass(frozen=True)
class LineageRow:
    """One link: what it is ("data", "teacher", "cache", "run", "export"), name, digest, and "ok" or what is wrong."""

    what: str
    name: str
    digest: str = ""
    state: str = ""


@dataclass(frozen=True)
class ReportFacts:
    """Everything in a report that is not in the run's own log; for an empty part the report says how to get it."""

    rows: tuple[ModelRow, ...] = ()
    exports: tuple[ExportFacts, ...] = ()
    lineage: tuple[LineageRow, ...] = ()
    gallery: tuple[GalleryItem, ...] = ()
    data: str = ""
    machine: str = ""

    def of(self, role: str) -> ModelRow | None:
        """The first row of a role, or None."""
        return next((row for row in self.rows if row.role == role), None)


def save_rows(
    run_dir: Path, rows: Sequence[ModelRow], *, data: str = "", machine: str = "", details: Mapping[str, Any] | None = None
) -> Path:
    """Write ``eval.json`` in one step: what was measured on ``data`` (a phrase), timed on ``machine`` (a phrase); ``details`` are kept with it."""
    path = run_dir / "eval.json"
    fresh = path.with_suffix(".json.new")
    content = {**(details or {}), "data": data, "machine": machine, "rows": [asdict(row) for row in rows]}
    fresh.write_text(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(fresh, path)
    return path


def gather_facts(run_dir: Path, *, gallery: int | None = None) -> ReportFacts:
    """Read what lies in ``run_dir``, with at most ``gallery`` gallery items; no model is loaded.

    Raises :class:`ReportError` for a file that is there and cannot be understood.
    """
    measured = run_dir / "eval.json"
    content = read_object(measured) if measured.is_file() else {}
    chain = run_dir / "lineage.json"
    links = _list(chain, read_object(chain), "rows") if chain.is_file() else []
    return ReportFacts(
        rows=tuple(_row(measured, row) for row in (_list(measured, content, "rows") if content else ())),
        exports=tuple(_exports(run_dir / "exports")),
        lineage=tuple(LineageRow(*(str(link.get(f.name, "")) for f in fields(LineageRow))) for link in links),
        gallery=load_gallery(run_dir, limit=gallery),
        data=str(content.get("data", "")),
        machine=str(content.get("machine", "")),
    )


def _row(path: Path, row: Mapping[str, Any]) -> ModelRow:
    role = row.get("role", "")
    if not isinstance(row.get("name"), str) or role not in ROLES:
        raise ReportError(
            f"{path}: a row needs a name and a role among {', '.join(ROLES[1:])}, got {row.get('name')!r} and "
            f"{role!r}; evaluate the run again"
        )
    parameters = number(row, "parameters")
    measured = {f.name: number(row, f.name) for f in fields(ModelRow)[3:]}
    return ModelRow(row["name"], role, None if parameters is None else int(parameters), **measured)


def _exports(folder: Path) -> list[ExportFacts]:
    found = []
    for beside in sorted(folder.glob("*.json")):
        content = read_object(beside)
        file = _exported_file(beside, content)
        if file is None:
            continue
        parity = content.get("parity")
        shown = (
            {str(k): v for k, v in parity.items() if isinstance(v, bool | int | float | str)}
            if isinstance(parity, dict)
            else {}
        )
        kind = str(content.get("format") or file.suffix.lstrip("."))
        # A Core ML package is a folder; what it holds is its size.
        size = sum(each.stat().st_size for each in file.rglob("*") if each.is_file()) if file.is_dir() else file.stat().st_size
        found.append(ExportFacts(file, kind, size, shown))
    return found


def _exported_file(beside: Path, content: Mapping[str, Any]) -> Path | None:
    """The file that a JSON file describes; None for an export that was moved away, which the report has no size for."""
    name = content.get("file")
    if isinstance(name, str):
        named = beside.parent / Path(name).name
        return named if named.exists() else None
    others = sorted(p for p in beside.parent.glob("*") if p.stem == beside.stem and p != beside and p.is_file())
    return others[0] if others else None


def _list(path: Path, content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    rows = content.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ReportError(f"{path} has no list of objects under {key!r}; write it again with the command that made it")
    return rows
