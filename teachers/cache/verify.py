"""Verifying a cache: some of its rows against the live teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from teachers.cache.reader import CacheReader
from teachers.cache.remedies import other_command, rebuild_remedy
from teachers.contract import Teacher, ViewSource
from teachers.errors import CacheError

# What a live pass may differ by, relative to the map's largest |logit|, because its batch or number of threads is
# another than the build's: float32 sums in another order; half precisions round every layer's sums.
NOISE: Mapping[str, float] = {"fp32": 2.0**-14, "fp16": 2.0**-8, "bf16": 2.0**-5}


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Cached rows against live ones.

    ``max_error`` and ``mean_error`` are of |Δlogit| over all cells; ``kl_max`` and ``kl_mean`` of KL(live ‖ cached) at T=1 in nats, the
    map as one distribution over cells; ``shift_max`` is the largest move of the argmax in cells; ``inout_error`` the largest
    |Δlogit| of in/out (None without); ``bound`` what the row with the largest error may differ by, and ``excess`` the largest ratio of a
    row's error to its bound, which is ``worst``'s. Rows whose live answer is not finite are named in ``not_finite`` and are in none of these
    figures; where there are no others, the figures are None.
    """

    rows: int
    views: int
    seed: int
    max_error: float | None
    mean_error: float | None
    kl_max: float | None
    kl_mean: float | None
    shift_max: float | None
    inout_error: float | None
    bound: float | None
    excess: float | None
    worst: str = ""
    not_finite: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.not_finite and self.excess is not None and self.excess <= 1.0


def _log_softmax(maps: np.ndarray) -> np.ndarray:
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    flat = flat - flat.max(axis=1, keepdims=True)
    return flat - np.log(np.exp(flat).sum(axis=1, keepdims=True))


def kl_divergence(live: np.ndarray, cached: np.ndarray) -> np.ndarray:
    """KL(live ‖ cached) ``[N]`` in nats of maps ``[N,h,w]``, each as a softmax over its cells."""
    p, q = _log_softmax(live), _log_softmax(cached)
    return (np.exp(p) * (p - q)).sum(axis=1)


def argmax_shift(live: np.ndarray, cached: np.ndarray) -> np.ndarray:
    """Distance ``[N]`` in cells between the argmaxes of maps ``[N,h,w]``."""
    width = live.shape[2]
    a, b = (maps.reshape(len(maps), -1).argmax(axis=1) for maps in (live, cached))
    return np.hypot(a // width - b // width, a % width - b % width)


def verify_rows(reader: CacheReader, teacher: Teacher, source: ViewSource, rows: int, seed: int = 0) -> VerifyReport:
    """Run the live teacher on random views until ``rows`` rows (or all) are compared; every view is run on its own, with all its heads.

    Raises :class:`CacheError` if teacher or source are not the cache's, and if a picture, its boxes or the view's geometry are not
    those that were cached, naming the scene.
    """
    # The runner imports torch; opening a cache does not need it.
    from teachers.shard_draft import answer

    reader.check(teacher.fingerprint, source.identity, mend=source.mend)
    reader.check_annotations(source)
    # A precision that is not known here is held to the strictest bound.
    noise = NOISE.get(str(teacher.fingerprint.get("precision")), NOISE["fp32"])
    dice = np.random.default_rng(seed % 2**64)  # which takes none below 0
    order = dice.permutation(len(source.keys) * reader.views)
    errors, means, divergences, shifts, bounds, ratios, inouts = [], [], [], [], [], [], []
    names: list[str] = []
    not_finite: list[str] = []
    compared = seen = 0
    for pick in order:
        if compared >= rows:
            break
        number, view = divmod(int(pick), reader.views)
        key = source.keys[number]
        if not reader.holds(key, view):
            continue
        cached = reader.read(key, view)
        loaded = source.load(number, [view], teacher.input_size)
        position = reader.position(key)
        assert position is not None
        stored = reader.digests(position, view).picture
        if stored != loaded.picture_digest:
            again = rebuild_remedy(reader.path, reader.manifest, reader.manifest.shards_of(position))
            raise CacheError(
                f"the picture of scene {key!r} has changed: cache {reader.path} was built from {stored.hex()}, it is now "
                f"{loaded.picture_digest.hex()}; put the old picture back, or {again}"
            )
        same = np.array_equal(loaded.geometry[0], cached.geometry) and np.array_equal(
            loaded.boxes[0].astype(np.float32), cached.boxes
        )
        if not same:
            raise CacheError(
                f"view {view} of scene {key!r} is drawn as {loaded.geometry[0].tolist()}, cache {reader.path} holds "
                f"{cached.geometry.tolist()}; build another cache with `{other_command(source.mend, reader.manifest)}`"
            )
        seen += 1
        if not len(cached.boxes):
            continue
        live, inout = answer(
            teacher, loaded.images, loaded.boxes[0].astype(np.float32), np.zeros(len(cached.boxes), np.int64)
        )
        # Of the last view no more heads than were asked for.
        chosen = np.isin(np.arange(len(live)), dice.permutation(len(live))[: rows - compared])
        compared += int(chosen.sum())
        finite = np.isfinite(live).all(axis=(1, 2))
        if inout is not None:
            finite &= np.isfinite(inout)
        rows_here = [f"scene {key!r}, view {view}, head {head}" for head in range(len(live))]
        not_finite += [name for name, mine, fine in zip(rows_here, chosen, finite, strict=True) if mine and not fine]
        finite &= chosen
        if not finite.any():
            continue
        names += [name for name, fine in zip(rows_here, finite, strict=True) if fine]
        # The zeros stand for rows that are taken out again: a bound of what is not finite is none.
        bounded = reader.error_bound(key, view, np.where(finite[:, None, None], live, 0.0).astype(np.float32))[finite]
        live, stored_map = live[finite], cached.heatmap[finite]
        delta = np.abs(live.astype(np.float64) - stored_map).reshape(len(live), -1)
        peak = np.abs(live).reshape(len(live), -1).max(axis=1)
        bound = bounded + noise * peak
        errors.append(delta.max(axis=1))
        means.append(delta.mean(axis=1))
        bounds.append(bound)
        ratio = delta.max(axis=1) / bound
        divergences.append(kl_divergence(live, stored_map))
        shifts.append(argmax_shift(live, stored_map))
        if inout is not None and cached.inout is not None:
            voice = inout[finite]
            gap = np.abs(voice.astype(np.float64) - cached.inout[finite])
            inouts.append(gap)
            ratio = np.maximum(ratio, gap / (noise * np.maximum(np.abs(voice), 1.0)))
        ratios.append(ratio)
    if not compared:
        raise CacheError(
            f"cache {reader.path} has no rows to verify for this data set; check --data, --split and `distill cache info`"
        )
    if not names:
        return VerifyReport(compared, seen, seed, None, None, None, None, None, None, None, None, not_finite=tuple(not_finite))
    error, allowed, excess = np.concatenate(errors), np.concatenate(bounds), np.concatenate(ratios)
    largest = int(np.argmax(error))
    return VerifyReport(
        compared,
        seen,
        seed,
        float(error.max()),
        float(np.concatenate(means).mean()),
        float(np.concatenate(divergences).max()),
        float(np.concatenate(divergences).mean()),
        float(np.concatenate(shifts).max()),
        float(np.concatenate(inouts).max()) if inouts else None,
        float(allowed[largest]),
        float(excess.max()),
        names[int(np.argmax(excess))],
        tuple(not_finite),
    )
