"""The configuration of a run: one frozen record, read from a TOML file and overridden on the command line.

A run file has sections; each key belongs to one of them::

    [run]      name, seed, device, log_every, ...          [student]  student, student_weights, ...
    [data]     data, cache, batch_size, ...                [loss]     inout_weight, softmax_weight, ...
    [schedule] epochs, lr, finetune, distill_weight, ...: the fields of schedules.plan.PlanConfig

The command line has the same names as options (``--batch-size``). An unknown key is refused with the nearest valid ones.
"""

from __future__ import annotations

import argparse
import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from distill.errors import ConfigurationError
from distill.loss_options import FORMS, SIGMA, check_losses

if TYPE_CHECKING:
    from schedules.plan import PlanConfig

MOST_SEEDS = 2**32  # NumPy's limit


def _option(section: str, default: Any, text: str, **extra: Any) -> Any:
    return field(default=default, metadata={"section": section, "help": text, **extra})


@dataclass(frozen=True)
class RunConfig:
    """Everything that one training depends on. ``schedule`` holds the given fields of ``schedules.plan.PlanConfig``."""

    name: str = _option("run", "", "the run's name, a directory below --runs (default: the run file's name)")
    runs: str = _option("run", "runs", "where runs are kept")
    seed: int = _option("run", 0, "seed of weights, order, views' choice and augmentation")
    device: str = _option("run", "auto", "auto, cpu or cuda")
    log_every: int = _option("run", 10, "steps between two lines of metrics.jsonl")
    tracker: str = _option("run", "auto", "auto (TensorBoard if installed), none, or names that accelerate knows: tensorboard,wandb")
    timeout_minutes: int = _option("run", 120, "how long processes wait for each other, e.g. for a validation, before they give up")
    student: str = _option("student", "lite0_tiny", "name in the catalogue (`distill students list`), or a run or stored student to start from")
    student_weights: str = _option("student", "", "start from a stored student's or run's weights")
    backbone_weights: str = _option("student", "", "file with the backbone's pretrained weights (timm's names)")
    backbone_from: str = _option("student", "", "start from this teacher's backbone (same network, cut where the student is cut)")
    random_backbone: bool = _option("student", False, "start the backbone from noise instead of pretrained weights")
    data: str = _option("data", "", "data set: a path, gazefollow:PATH or vat:PATH (default: the cache's own)")
    train_split: str = _option("data", "train", "split to train on: train leaves the carved validation scenes out")
    val_split: str = _option("data", "val", "split to choose the best student on; test needs --allow-test-selection")
    allow_test_selection: bool = _option("data", False, "let the best student be chosen on test; every table then says so")
    val_scenes: int = _option("data", 0, "validate during training on the first so many scenes (0: all)")
    cache: str = _option(
        "data", "", "teacher cache made by `distill cache build`; several average: A:0.6,B:0.4, or the option twice", joined=True
    )
    ensemble_space: str = _option("data", "logit", "several caches average as log-odds (logit) or as probability")
    views: int = _option("data", 0, "views of each scene that are replayed from the cache (0: all that are there at the start)")
    unlabelled: str = _option("data", "", "caches of further pictures, with head boxes and no labels, that are only distilled from: A,B")
    unlabelled_share: float = _option("data", 0.5, "share of every batch that is unlabelled, where there are labelled scenes too")
    unlabelled_views: int = _option("data", 0, "views of each unlabelled scene that are replayed (0: all that are there at the start)")
    unlabelled_data: str = _option("data", "", "where the pictures of --unlabelled are, one for each (default: where they were)")
    val_data: str = _option("data", "", "data set to choose the best student on (default: the one that is trained on)")
    batch_size: int = _option("data", 16, "pictures in a step, over all processes")
    accumulate: int = _option("data", 1, "split each step's batch into so many parts, for memory")
    workers: int = _option("data", 2, "threads that decode pictures")
    augment: float = _option("data", 1.0, "strength of photometric changes and box jitter, 0 to 2; 0 switches them off")
    optimizer: str = _option("train", "adamw", "adamw or sgd")
    momentum: float = _option("train", 0.9, "SGD's momentum")
    weight_decay: float = _option("train", 0.01, "weight decay (none on norms, biases and tokens)")
    grad_clip_norm: float = _option("train", 1.0, "clip the gradient's norm to this; 0 switches clipping off")
    use_amp: bool = _option("train", False, "mixed precision: bf16 where the hardware has it, else fp16 on a GPU")
    best_metric: str = _option("train", "avg_l2", "validation metric that chooses the best student")
    patience: int = _option("train", 0, "stop after so many validations without a better one (0: never)")
    ema_decay: float = _option("train", 0.0, "average the weights with this decay, e.g. 0.999, and validate both (0: off)")
    grad_checkpointing: bool = _option("train", False, "recompute open blocks in the backward pass: less memory, more time")
    compile: bool = _option("train", False, "compile the backbone with torch.compile; every thaw compiles it anew")
    spike_factor: float = _option("train", 2.0, "a step's loss above so many times the mean before a thaw is a spike")
    spike_window: int = _option("train", 20, "steps before and after a thaw that are compared")
    on_spike: str = _option("train", "warn", "warn, or hold: the next thaw comes one interval later")
    validate_every: int = _option("train", 1, "epochs between two validations")
    checkpoint_steps: int = _option("train", 0, "also write a checkpoint every so many steps (0: at the end of epochs)")
    limit_steps: int = _option("train", 0, "stop after so many steps (0: the whole run): a smoke run; --resume goes on from there")
    inout_weight: float = _option("loss", 1.0, "λ, what both in/out terms weigh")
    bce_weight: float = _option("loss", 1.0, "what the heatmap's BCE weighs")
    softmax_weight: float = _option("loss", 0.0, "what the heatmap's spatial cross-entropy weighs (0: not used)")
    target_sigma: float = _option("loss", SIGMA, "σ of the target's Gaussian, as a share of the map: 3 cells of 64 are 0.046875")
    distill_loss: str = _option("loss", "kl", f"how maps follow the teacher's: {FORMS}")
    reliability: float = _option("loss", 0.0, "believe a teacher whose peak is far from the annotation less: σ as a share of the map (0: no)")
    schedule: Mapping[str, Any] = field(default_factory=dict, metadata={"section": "schedule"})

    def __post_init__(self) -> None:
        for item in _own_fields():
            value = getattr(self, item.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigurationError(f"{item.name} is {value}; give a finite number")
        for name, lowest in (
            ("batch_size", 1), ("accumulate", 1), ("workers", 1), ("log_every", 1), ("validate_every", 1), ("val_scenes", 0), ("views", 0),
            ("unlabelled_views", 0),
            ("checkpoint_steps", 0), ("limit_steps", 0), ("weight_decay", 0), ("grad_clip_norm", 0), ("inout_weight", 0),
            ("bce_weight", 0), ("softmax_weight", 0), ("reliability", 0), ("timeout_minutes", 1), ("patience", 0), ("ema_decay", 0), ("momentum", 0),
            ("spike_window", 1), ("seed", 0),
        ):
            if getattr(self, name) < lowest:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be at least {lowest}")
        if self.seed >= MOST_SEEDS:
            raise ConfigurationError(f"seed is {self.seed}; it must be below {MOST_SEEDS}")
        starts = [name for name in ("student_weights", "backbone_weights", "backbone_from", "random_backbone") if getattr(self, name)]
        if len(starts) > 1:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in starts)
            raise ConfigurationError(
                f"{flags} are all set, and a student starts from one of them; keep one and empty the others (--backbone-from '')"
            )
        check_losses(self)
        if not 0 < self.unlabelled_share < 1:
            raise ConfigurationError(f"unlabelled_share is {self.unlabelled_share}; give a fraction between 0 and 1, such as 0.5")
        if not 0 <= self.augment <= 2:
            raise ConfigurationError(f"augment is {self.augment}; give a strength between 0 and 2")
        known_values: tuple[tuple[str, tuple[str, ...]], ...] = (
            ("device", ("auto", "cpu", "cuda")), ("optimizer", ("adamw", "sgd")), ("on_spike", ("warn", "hold")),
            ("ensemble_space", ("logit", "probability")),
        )
        for name, known in known_values:
            if getattr(self, name) not in known:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}; use {', '.join(known[:-1])} or {known[-1]}")
        for name in ("ema_decay", "momentum"):
            if getattr(self, name) >= 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be below 1")
        if self.spike_factor <= 1:
            raise ConfigurationError(f"spike_factor is {self.spike_factor}; it must be above 1, or every step after a thaw is a spike")
        if self.compile and self.grad_checkpointing:
            raise ConfigurationError("--compile and --grad-checkpointing are both set, and compiled blocks are not recomputed; leave one out")

    def plan_config(self, steps_per_epoch: int) -> PlanConfig:
        """The schedule for a run with so many steps in an epoch."""
        from schedules.plan import PlanConfig

        if "epochs" not in self.schedule:
            raise ConfigurationError("the run's length is not given: set epochs in [schedule], or --epochs N")
        return PlanConfig(steps_per_epoch=steps_per_epoch, **self.schedule)

    def to_json(self) -> dict[str, Any]:
        """Plain data by section, as ``config.json`` holds it and :func:`config_from_sections` reads it back."""
        sections: dict[str, dict[str, Any]] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "schedule":
                sections["schedule"] = dict(value)
            else:
                sections.setdefault(item.metadata["section"], {})[item.name] = value
        return sections


def _own_fields() -> list[Field[Any]]:
    return [item for item in fields(RunConfig) if item.name != "schedule"]


def _schedule_names() -> set[str]:
    from schedules.plan import PlanConfig

    return {item.name for item in fields(PlanConfig)} - {"steps_per_epoch"}


def _checked(name: str, value: Any, where: str) -> Any:
    kind = get_type_hints(RunConfig)[name]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigurationError(f"{where}: {name} must be {kind.__name__}, got {value!r}")
    return value


def config_from_sections(sections: Mapping[str, Any], where: str) -> RunConfig:
    """A run's configuration from nested plain data; ``where`` names the file in errors."""
    homes = {item.name: item.metadata["section"] for item in _own_fields()} | dict.fromkeys(_schedule_names(), "schedule")
    known_sections = sorted(set(homes.values()))
    values: dict[str, Any] = {}
    schedule: dict[str, Any] = {}
    for section, entries in sections.items():
        if section not in known_sections:
            if section in homes and not isinstance(entries, Mapping):
                raise ConfigurationError(f"{where}: key {section!r} stands outside the sections; move it below [{homes[section]}]")
            near = difflib.get_close_matches(section, known_sections, n=2)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise ConfigurationError(f"{where}: unknown section [{section}]{hint}; sections are {', '.join(known_sections)}")
        if not isinstance(entries, Mapping):
            raise ConfigurationError(f"{where}: {section} must be a section of keys, got {entries!r}")
        for name, value in entries.items():
            if name not in homes:
                near = difflib.get_close_matches(name, homes, n=3, cutoff=0.5)
                hint = ", ".join(f"{item} in [{homes[item]}]" for item in near) or f"the keys of [{section}]"
                raise ConfigurationError(f"{where}: unknown key {name!r} in [{section}]; nearest: {hint}")
            if homes[name] != section:
                raise ConfigurationError(f"{where}: key {name!r} belongs to [{homes[name]}], not to [{section}]; move it there")
            if section == "schedule":
                schedule[name] = value
            else:
                values[name] = _checked(name, value, where)
    try:
        return RunConfig(**values, schedule=schedule)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def read_run_file(path: Path) -> dict[str, dict[str, Any]]:
    """A run file's sections as they are written, each key known and of its kind; raises ConfigurationError."""
    try:
        sections = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigurationError(f"run file {path} does not exist; recipes/ holds examples") from None
    except IsADirectoryError:
        raise ConfigurationError(f"{path} is a directory, where a run file (TOML) is expected; {_of_a_directory(path)}") from None
    except OSError as error:
        raise ConfigurationError(f"run file {path} cannot be read ({error.strerror}); mend that, or copy it elsewhere") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"run file {path} is not valid TOML: {error}") from None
    config_from_sections(sections, str(path))  # the file is judged before anything is laid over it
    return sections


def load_run_config(path: Path | None, overrides: Mapping[str, Any]) -> RunConfig:
    """Read a run file (or none) and let ``overrides`` (by field name) win."""
    sections: dict[str, dict[str, Any]] = {}
    if path is not None:
        sections = read_run_file(path)
        sections.setdefault("run", {}).setdefault("name", path.stem)
    homes = {item.name: item.metadata["section"] for item in _own_fields()} | dict.fromkeys(_schedule_names(), "schedule")
    for name, value in overrides.items():
        sections.setdefault(homes[name], {})[name] = value
    return config_from_sections(sections, "command line")


def _of_a_directory(path: Path) -> str:
    """What somebody who names a directory in place of a run file may have meant."""
    if (path / "config.json").is_file():
        return f"it holds a run: its compiled plan is {path}/plan.json, `distill report {path}` draws it, `distill train --resume {path}` goes on with it"
    files = sorted(path.glob("*.toml"))
    return f"name one of its run files, such as {files[0]}" if files else "recipes/ holds examples"


class Joined(argparse.Action):
    """An option that may be given several times: its values are joined by commas, as a run file writes them."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest, "")
        setattr(namespace, self.dest, f"{before},{values}" if before else values)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """One option for every field of :class:`RunConfig`, present in the result only if it was given."""
    hints = get_type_hints(RunConfig)
    groups: dict[str, Any] = {}
    for item in _own_fields():
        section = item.metadata["section"]
        group = groups.setdefault(section, parser.add_argument_group(section))
        flag = "--" + item.name.replace("_", "-")
        text = item.metadata["help"].replace("%", "%%")
        if item.default not in ("", MISSING) and hints[item.name] is not bool:
            text += f" (default: {item.default})"
        if hints[item.name] is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            kind = hints[item.name]
            group.add_argument(
                flag, type=kind, action=Joined if item.metadata.get("joined") else "store", default=argparse.SUPPRESS, help=text,
                metavar={int: "N", float: "X"}.get(kind, "TEXT")
            )


def run_overrides(options: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, by field name: the record's own and the schedule's."""
    names = {item.name for item in _own_fields()} | _schedule_names()
    return {name: value for name, value in vars(options).items() if name in names}
