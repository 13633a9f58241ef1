"""Everything that ``distill eval`` says of a model beside its row: intervals, slices, reliability of in/out, flags, digests.

A card is made from rows, one a head, so that all of it is of the same heads by the same protocol. :meth:`Scorecards.facts` is what
``--json`` and ``eval.json`` hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distill.metrics import GazeMetrics, HeadRows
from distill.metrics.bootstrap import RESAMPLES, SEED, Difference, Interval, intervals, paired
from distill.metrics.flags import flags
from distill.metrics.reliability import Reliability, reliability
from distill.metrics.slices import Slice, inout_right, slices

# What a table's AUC is, by protocol; docs/metrics.md has the long form and the variants of other projects.
PROTOCOLS: Mapping[str, str] = {
    "gazefollow": "AUC at each picture's own size against the annotators' pixels (GazeFollow)",
    "gazefollow64": "AUC on the heatmap's own grid against the annotators' cells (not comparable with tables of the picture's size)",
    "vat": "AUC on 64×64 cells against a box of ±9 cells around the point (VideoAttentionTarget)",
}


@dataclass(frozen=True)
class Card:
    """One model, or one row without a model. ``digest`` is of the checkpoint or file scored, "" for a row without a model."""

    name: str
    role: str
    metrics: GazeMetrics
    intervals: Mapping[str, Interval | None] = field(default_factory=dict)
    digest: str = ""
    flags: tuple[str, ...] = ()
    slices: tuple[Slice, ...] = ()
    reliability: Reliability | None = None
    inout_right: float | None = None

    @classmethod
    def of(cls, name: str, role: str, rows: HeadRows, *, digest: str = "", resamples: int = RESAMPLES, seed: int = SEED) -> Card:
        """From a model's rows; ``resamples`` 0 makes no intervals."""
        found = intervals(rows, resamples=resamples, seed=seed) if resamples else {}
        return cls(
            name, role, rows.metrics(), found, digest, tuple(flags(rows, found.get("ap"))), tuple(slices(rows)), reliability(rows), inout_right(rows)
        )


@dataclass(frozen=True)
class Pair:
    """``name`` less ``other``, metric by metric; None where a metric is undefined."""

    name: str
    other: str
    differences: Mapping[str, Difference | None]


@dataclass(frozen=True)
class Scorecards:
    """All cards of one table, and what they are of. ``clusters`` says in a word what was resampled: scenes or clips."""

    cards: tuple[Card, ...]
    pairs: tuple[Pair, ...]
    data: str
    split: str
    scenes: int
    reader: str
    protocol: str
    data_digest: str
    resamples: int
    seed: int
    clusters: str = "scenes"

    def facts(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "protocol": self.protocol, "protocol_means": PROTOCOLS[self.protocol], "data_digest": self.data_digest, "reader": self.reader,
            "resamples": self.resamples, "seed": self.seed, "clusters": self.clusters,
            "models": [asdict(card) for card in self.cards],
            "paired": [asdict(pair) for pair in self.pairs],
        }

    def provenance(self) -> list[str]:
        """Lines that every table is printed with: data, protocol, intervals."""
        drawn = f"intervals: 95 %, {self.resamples:,} resamples of {self.clusters}, seed {self.seed}" if self.resamples else "no intervals"
        if self.resamples and not any(found for card in self.cards for found in card.intervals.values()):
            drawn = f"no intervals: they need two {self.clusters} or more with labels"
        return [
            f"data {self.data}, split {self.split}, {self.scenes:,} scenes, annotations {self.data_digest}",
            f"protocol {self.protocol}: {PROTOCOLS[self.protocol]}",
            f"{drawn}; avg L2 is to the mean annotation, mean-of the mean of the distances",
        ]


def pair_up(named: Sequence[tuple[str, HeadRows]], other: str, *, resamples: int, seed: int) -> tuple[Pair, ...]:
    """Every model less the one called ``other``, which is one of them."""
    theirs = next(rows for name, rows in named if name == other)
    return tuple(Pair(name, other, paired(rows, theirs, resamples=resamples, seed=seed)) for name, rows in named if name != other)


def model_digest(spec: str, model: Any) -> str:
    """The digest of the weights that ``model`` runs with, or of the file at ``spec``; "" where neither is known."""
    from students.onnx_runtime import export_digest

    fingerprint = getattr(model, "fingerprint", None)
    if isinstance(fingerprint, Mapping) and fingerprint.get("weights"):
        return str(fingerprint["weights"])
    path = Path(spec.removeprefix("onnx:"))
    return export_digest(path) if path.is_file() or (path.suffix == ".mlpackage" and path.is_dir()) else ""
