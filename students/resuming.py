"""Whether a checkpoint is one of this run: what must be the same is compared before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from students.errors import RunError


def refuse_misfit(facts: Mapping[str, Any], mine: Mapping[str, Any], path: str, run: str) -> None:
    """Compare a checkpoint's ``facts`` with this run's (model, lineage, optimizer, steps_per_epoch).

    Raises :class:`RunError` for another student, other data, another optimizer, or epochs of another number of steps.
    """
    config, model = plain(facts["model"]), plain(mine["model"])
    if config != model:
        differing = sorted(key for key in set(config) | set(model) if config.get(key) != model.get(key))
        raise RunError(
            f"{path} is of another student: it differs in {', '.join(differing)} (e.g. {differing[0]} {config.get(differing[0])!r} "
            f"there, {model.get(differing[0])!r} here); resume with the student that the run was started with"
        )
    if facts["lineage"] != mine["lineage"]:
        raise RunError(
            f"{run} was trained on other data or another cache ({_difference(facts['lineage'], mine['lineage'])}); resume "
            "with the same --data and --cache, or start a new run"
        )
    if facts["optimizer"] != mine["optimizer"]:
        raise RunError(
            f"{path} holds the state of {facts['optimizer']}, this run asks for {mine['optimizer']}; resume with --optimizer "
            f"{facts['optimizer']}, or start a new run"
        )
    steps = facts["plan"]["steps_per_epoch"]
    if steps != mine["steps_per_epoch"]:
        raise RunError(
            f"{path} was made with {steps} steps an epoch, this run would have {mine['steps_per_epoch']}: every rate and every thaw would "
            "fall on another step; resume with the --batch-size that the run was started with (for memory raise --accumulate), or start "
            "a new run"
        )


def plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    for key in sorted(set(there) | set(here)):
        if there.get(key) != here.get(key):
            return f"{key}: {there.get(key)} there, {here.get(key)} here"
    return "order of keys"
