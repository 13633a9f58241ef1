"""Unlabelled data of a run: caches of pictures with head boxes alone, what is held out of them, and what is refused.

`distill train --unlabelled A,B` adds the scenes of the caches A and B (they are not averaged, as those of ``--cache A,B`` are). A cache of
labelled data serves as well: its labels are then not used. A tenth of each cache's scenes (by :func:`distill.splits.carve`, so the same
ones on every machine and as the data grow) is never trained on: the student's agreement with the teacher is measured there.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.cached_teacher import CachedTeacher, data_of_cache, open_cached_teacher, recorded_data, specs_of
from distill.errors import ConfigurationError, DataError
from distill.feeding import Pool
from distill.mixing import Mixture
from distill.pictures import digest_bytes, read_bytes
from distill.readers import open_data
from distill.scenes import IN, UNKNOWN, Scene, SceneSet
from distill.splits import carve

if TYPE_CHECKING:
    from distill.configuration import RunConfig


@dataclass(frozen=True)
class Material:
    """What a run learns from: labelled scenes, pools without labels, and pools that are held out of these for comparison with the teacher.

    ``labelled`` is empty where the data have no labels: the pools are then all there is. ``views`` is how many views of each
    unlabelled scene are replayed (0 where no cache was named for them); ``lineage`` has one entry for each of those caches.
    """

    labelled: tuple[Scene, ...]
    pools: tuple[Pool, ...] = ()
    held_out: tuple[Pool, ...] = ()
    views: int = 0
    lineage: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """How many scenes of each kind there are, as a run records them."""
        return {
            "labelled": len(self.labelled),
            "unlabelled": sum(len(pool.scenes) for pool in self.pools),
            "held_out": sum(len(pool.scenes) for pool in self.held_out),
        }

    def sentence(self, mixture: Mixture) -> str:
        """The numbers in a sentence for the console."""
        labelled, unlabelled, held_out = self.counts().values()
        beside = f"agreement with the teacher is measured on {held_out} more" if held_out else "none are held out"
        steps = mixture.steps_per_epoch
        if not labelled:
            return f"learning from {unlabelled} scenes without labels, by distillation alone, {steps} steps an epoch; {beside}"
        first, second = mixture.parts
        return (
            f"learning from {labelled} labelled and {unlabelled} unlabelled scenes: a batch holds {first} + {second} pictures, an epoch is a pass "
            f"over the labelled ones ({steps} steps) and {mixture.passes(steps):.2g} passes over the unlabelled ones; {beside}"
        )


def has_labels(scenes: Sequence[Scene]) -> bool:
    """Whether any head is labelled: in the frame or out of it."""
    return any(head.inout != UNKNOWN for scene in scenes for head in scene.heads)


def with_data(config: RunConfig) -> RunConfig:
    """The configuration with its data set named: from the cache, where none is given.

    Unlabelled caches alone are a run of pure distillation: the first takes the place of the data set's cache.
    """
    if config.data or config.cache or not config.unlabelled:
        return config if config.data else replace(config, data=data_of_cache(config.cache))
    first, *more = specs_of(config.unlabelled)
    spec, split, *elsewhere = *_place(first, config), *specs_of(config.unlabelled_data)[1:]
    if has_labels(open_data(spec, split).scenes):
        raise ConfigurationError(
            f"cache {first} was built from labelled data ({spec}), whose labels --unlabelled would leave out; give it with --cache to learn "
            "from them, or name labelled data beside it"
        )
    return replace(config, data=spec, cache=first, unlabelled=",".join(more), unlabelled_data=",".join(elsewhere))


def _place(cache: str, config: RunConfig) -> tuple[str, str]:
    """(data set, split) of an unlabelled cache: where the run says it is now, else where it was when the cache was built."""
    caches, places = specs_of(config.unlabelled), specs_of(config.unlabelled_data)
    if places and len(places) != len(caches):
        raise ConfigurationError(
            f"--unlabelled names {len(caches)} caches, --unlabelled-data {len(places)} data sets; give one for each, in the same order"
        )
    if not Path(cache).exists() and Path(cache.rpartition(":")[0]).exists():
        raise ConfigurationError(f"--unlabelled {cache}: unlabelled caches are added up, not averaged; leave the weight out")
    spec, split = recorded_data(cache, "--unlabelled-data", places[caches.index(cache)] if places else "")
    return spec, split


def gather(
    config: RunConfig,
    scenes: SceneSet,
    teacher: CachedTeacher | None,
    validation: Sequence[Scene],
    heatmap_size: tuple[int, int],
    *,
    inout: bool,
) -> Material:
    """Open the unlabelled caches and divide what the run learns from.

    ``teacher`` is that of the run's own data, ``inout`` whether the student's in/out head is distilled. Raises mendable errors for caches
    that cannot be mixed, and for pictures that are not where they were.
    """
    own: Sequence[Scene] = scenes.scenes if teacher is None else teacher.scenes
    exif = scenes.reader == "folder"
    notes: list[str] = []
    if config.val_data:
        own = _apart([Pool(own, _policy(teacher), teacher, exif)], validation, notes)[0].scenes
    labelled = tuple(own) if has_labels(own) else ()
    if not config.unlabelled and labelled:
        return Material(labelled, notes=tuple(notes))
    if config.unlabelled and teacher is None:
        raise ConfigurationError(
            f"unlabelled data are given, but no teacher's cache of {config.data}, and every picture of a batch must have its answer; run `distill "
            f"cache build --data {config.data} --out DIR` and give it with --cache DIR"
        )
    taught, sets = [], []
    for cache in specs_of(config.unlabelled):
        spec, split = _place(cache, config)
        found = open_data(spec, split)
        opened = open_cached_teacher(cache, found, heatmap_size, config.unlabelled_views, option="--unlabelled-views")
        notes += opened.notes
        taught.append(opened)
        sets.append(found)
    views = min((each.views for each in taught), default=0)
    taught = [replace(each, views=views) for each in taught]
    if taught and teacher is not None:
        _refuse_or_warn(config, teacher, taught, inout, notes)
    pools = [
        Pool(_bare(each.scenes), each.policy, each, found.reader == "folder", cache)
        for cache, each, found in zip(specs_of(config.unlabelled), taught, sets, strict=True)
    ]
    if not labelled:
        pools.insert(0, Pool(_bare(own), _policy(teacher), teacher, exif, config.cache if pools else ""))
    pools = _apart(pools, validation, notes)
    shown, held_out = [], []
    for pool in pools:
        # Without a teacher's answers there is nothing to be compared with.
        train, kept = carve(pool.scenes) if pool.cache is not None else (list(pool.scenes), [])
        shown.append(replace(pool, scenes=tuple(train)))
        kept = kept[: config.val_scenes or None]
        if any(scene.heads for scene in kept):
            held_out.append(replace(pool, scenes=tuple(kept)))
    lineage = [
        {**each.lineage(), "data": found.digest(), "reader": found.reader, "split": found.split} for each, found in zip(taught, sets, strict=True)
    ]
    for entry, pool in zip(lineage, pools[len(pools) - len(lineage) :], strict=True):
        entry["scenes"] = len(pool.scenes)
    return Material(labelled, tuple(shown), tuple(held_out), views, tuple(lineage), tuple(notes))


def _policy(teacher: CachedTeacher | None) -> Any:
    from distill.views import ViewPolicy

    return ViewPolicy() if teacher is None else teacher.policy


def _bare(scenes: Sequence[Scene]) -> tuple[Scene, ...]:
    """The scenes without any label that they may have."""
    return tuple(
        replace(scene, heads=tuple(replace(head, points=(), inout=UNKNOWN) for head in scene.heads)) for scene in scenes
    )


def _refuse_or_warn(
    config: RunConfig, one: CachedTeacher, taught: Sequence[CachedTeacher], inout: bool, notes: list[str]
) -> None:
    """Teachers that cannot be heard together are refused, different ones that can be are noted."""
    first = config.cache
    for cache, each in zip(specs_of(config.unlabelled), taught, strict=True):
        if inout and each.reader.has_inout != one.reader.has_inout:
            without, having = (cache, first) if one.reader.has_inout else (first, cache)
            raise ConfigurationError(
                f"the teacher of cache {without} has no in/out logits, that of cache {having} has: they cannot teach in/out together; build "
                f"{without} with a teacher that has them, or set --inout-weight 0"
            )
        mine, theirs = one.lineage()["teacher"], each.lineage()["teacher"]
        if mine != theirs:
            notes.append(
                f"cache {first} was built by teacher {mine.get('name')} ({mine.get('weights', 'several')}), cache {cache} by "
                f"{theirs.get('name')} ({theirs.get('weights', 'several')}): the student learns from both"
            )


def _apart(pools: Sequence[Pool], validation: Sequence[Scene], notes: list[str]) -> list[Pool]:
    """The pools without scenes whose picture, byte for byte, is one of ``validation``'s; a note says how many were left out.

    Only pictures of one size in bytes are compared, a pool's by the digest in its cache. Raises :class:`DataError` if nothing is left.
    """
    found = []
    sizes: dict[int, list[Scene]] = defaultdict(list)
    for each in validation:
        sizes[_bytes(each)].append(each)
    digests: dict[int, set[bytes]] = {}
    for pool in pools:
        kept = []
        for scene in pool.scenes:
            size = _bytes(scene) if sizes else -1
            if size in sizes:
                if size not in digests:
                    digests[size] = {digest_bytes(read_bytes(each.picture)) for each in sizes[size]}
                now = pool.cache.picture_digest(scene.key, 0) if pool.cache is not None else digest_bytes(read_bytes(scene.picture))
                if now in digests[size]:
                    continue
            kept.append(scene)
        if not kept:
            raise DataError(f"every picture of {pool.name or 'the training data'} is in the validation split too; validate on other pictures with --val-data")
        if len(kept) < len(pool.scenes):
            where = pool.name or "the training data"
            notes.append(f"{len(pool.scenes) - len(kept)} pictures of {where} are in the validation split too and are not trained on")
        found.append(replace(pool, scenes=tuple(kept)))
    return found


def _bytes(scene: Scene) -> int:
    try:
        return os.stat(scene.picture).st_size
    except FileNotFoundError:
        return -1  # feeding names it when it is read


def refuse_unheard(config: RunConfig, material: Material, taught: bool, cached: bool) -> None:
    """Raise :class:`ConfigurationError` where the run's distillation weight leaves nothing to learn from.

    ``taught`` is whether the weight is ever above 0, ``cached`` whether there is a teacher.
    """
    if taught and not cached:
        raise ConfigurationError("distill_weight is not 0 but there is no teacher: give --cache PATH, or --distill-weight 0")
    if taught:
        return
    if not any(head.inout == IN and head.points for scene in material.labelled for head in scene.heads):
        raise ConfigurationError(
            f"no head of {config.data} has a gaze label and distill_weight is 0: there is nothing to learn from; set --distill-weight, e.g. 1.0"
            + ("" if cached else ", and give a teacher's --cache")
        )
    if material.pools:
        raise ConfigurationError(
            f"unlabelled data ({config.unlabelled}) are given but distill_weight is 0: nothing would be learned from them; set "
            "--distill-weight, e.g. 1.0, or leave --unlabelled out"
        )
