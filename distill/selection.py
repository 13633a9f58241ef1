"""Which split the best student of a run was chosen on, and the mark that a student chosen on test carries everywhere.

A split that decides which checkpoint is kept is part of training: its numbers flatter. GazeFollow and VideoAttentionTarget have no validation
split, which is why one is carved (:mod:`distill.splits`). Who wants the literature's habit of choosing on test says so with
``--allow-test-selection``; the run's facts, its exported files and every table then say it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill.errors import ConfigurationError, DataError
from distill.scenes import IN, OUT, Scene, SceneSet

if TYPE_CHECKING:
    from distill.configuration import RunConfig

TEST = "test"
DISTANCES = ("avg_l2", "auc", "avg_l2_mean_of", "min_l2")  # metrics of heads whose gaze point is in the frame


def refuse_test_selection(config: RunConfig) -> None:
    """Raise :class:`ConfigurationError` where the best student would be chosen on test and nobody said that it may."""
    if config.val_split == TEST and not config.allow_test_selection:
        raise ConfigurationError(
            "val_split is test: the best student would be chosen on the split that it is reported on, and its numbers would flatter; use "
            "--val-split val, or --allow-test-selection, which every later table then says"
        )


def refuse_unmeasurable(metric: str, scenes: Sequence[Scene], where: str, *, inout: bool) -> None:
    """Raise :class:`ConfigurationError` where ``scenes`` cannot give ``metric``: found out before the first step, not after the first epoch.

    ``inout`` is whether the student tells in from out. What is not measured on the labels of scenes is not judged.
    """
    labels = {head.inout for scene in scenes for head in scene.heads}
    located = any(head.inout == IN and head.points for scene in scenes for head in scene.heads)
    if metric in DISTANCES and not located:
        raise ConfigurationError(
            f"best_metric is {metric}, and no head of {where} ({len(scenes)} scenes) has a gaze point in the frame: choose the best student on other "
            "scenes (--val-split, --val-data, a larger --val-scenes)" + (", or by --best-metric ap" if inout and {IN, OUT} <= labels else "")
        )
    if metric == "ap" and not (inout and {IN, OUT} <= labels):
        one_kind = f"the heads of {where} ({len(scenes)} scenes) are not some in and some out of the frame"
        reason = one_kind if inout else "the student has no in/out head"
        raise ConfigurationError(
            f"best_metric is ap, and {reason}: choose the best student by {' or '.join(DISTANCES[:2])} (--best-metric)"
            + (", or on other scenes (--val-split, --val-data, a larger --val-scenes)" if inout else "")
        )


def refuse_unlabelled(scenes: SceneSet, limit: int = 0) -> None:
    """Raise :class:`DataError` where none of the first ``limit`` scenes (0: all) has a label that a metric could be taken against."""
    chosen = scenes.scenes[:limit] if limit else scenes.scenes
    if not any(head.inout == OUT or (head.inout == IN and head.points) for scene in chosen for head in scene.heads):
        raise DataError(
            f"{scenes.root}, split {scenes.split}: none of {len(chosen)} scenes has a head with a gaze point or labelled out of the frame, so there is "
            "nothing to score; give labelled data (DATA of `distill data check --help`), or look at the answers with `distill predict`"
        )


def refuse_several_annotators(scenes: SceneSet) -> None:
    """Raise :class:`ConfigurationError` for scenes whose heads have several gaze points: VideoAttentionTarget's AUC is of one."""
    most = max((len(head.points) for scene in scenes.scenes for head in scene.heads), default=0)
    if most > 1:
        raise ConfigurationError(
            f"protocol vat is of one annotator a head, and heads of {scenes.root}, split {scenes.split}, have up to {most}: use --protocol gazefollow, "
            "or gazefollow64"
        )


def selection(config: RunConfig) -> dict[str, Any]:
    """What a run's facts say of the choice: the split, the metric, and how many scenes of it (0: all)."""
    return {"split": config.val_split, "metric": config.best_metric, "scenes": config.val_scenes}


def mark(facts: Mapping[str, Any]) -> str:
    """What is to be added to the name of a student with these facts: nothing, or that it has seen the test split."""
    chosen, lineage = facts.get("selection"), facts.get("lineage")
    marks = []
    if isinstance(lineage, Mapping) and lineage.get("split") == TEST:
        marks.append("trained on test")
    if isinstance(chosen, Mapping) and chosen.get("split") == TEST:
        marks.append("chosen on test")
    return f" ({', '.join(marks)})" if marks else ""
