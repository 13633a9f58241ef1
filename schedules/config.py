"""The schedule as configured: one frozen record, checked at birth."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

from schedules.curves import Curve, CurveSpec, Ramp, parse_curve
from schedules.durations import Duration
from schedules.errors import PlanError

DurationSpec = Duration | float | str
MOST_EPOCHS = 100_000  # a plan has a line for every epoch: so many compile in seconds, and no run on record has a tenth of them


@dataclass(frozen=True)
class PlanConfig:
    """What a plan is compiled from. Raises PlanError for a value, or a combination, that cannot be carried out."""

    epochs: int
    """Length of the run."""
    steps_per_epoch: int
    """Optimizer steps in one epoch."""
    finetune: bool = False
    """Open backbone stages at all; without it the backbone stays frozen."""
    finetune_layers: int = 2
    """Blocks open from the start, counted from the last; `<= 0` opens the whole backbone, stem included, at once."""
    initial_freeze_epochs: DurationSpec = 10
    """Thaw time for which only `finetune_layers` blocks are open."""
    unfreeze_interval: DurationSpec = 3
    """Thaw time between two further blocks after that."""
    disable_progressive_unfreeze: bool = False
    """Keep `finetune_layers` blocks open for the whole run."""
    thaw_coupling: float = 1.0
    """How much the distillation weight slows the thaw clock (κ): an epoch counts 1 / (1 + κ·w)."""
    distill_weight: CurveSpec = 0.0
    """Weight of the distillation loss (w): a curve, never negative."""
    distill_temp_start: float = 1.0
    """Temperature at the run's first step."""
    distill_temp_end: float = 1.0
    """Temperature at the run's end. Over the thousands of cells of a map a rising one flattens the target and was no gain (docs/plan.md)."""
    distill_temp_shape: Literal["linear", "cosine"] = "linear"
    """How the temperature goes from start to end."""
    distill_temperature: CurveSpec | None = None
    """Temperature as a full curve, in place of the three values above."""
    lr: float = 1e-3
    """Peak learning rate of the head."""
    backbone_lr: float | None = None
    """Peak learning rate of the backbone; a tenth of `lr` if not given."""
    warmup: DurationSpec = "2%"
    """Linear warm-up at the start of the run."""
    thaw_warmup: DurationSpec = 0.5
    """Linear warm-up of a stage from the step at which it opens."""
    layer_decay: float = 1.0
    """The rate of a stage is `layer_decay ** i` of the backbone's, i = 0 for the last block."""
    final_lr_ratio: float = 0.01
    """Rate at the end of the run relative to its peak (cosine)."""
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    """How the rates fall after the warm-up."""
    planned_epochs: int | None = None
    """Length over which curves, percentages and rates are laid out, if it is not `epochs`: a prolonged run keeps the
    length that it was planned for, and its further epochs keep the final values."""

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "planned_epochs"):
            value = getattr(self, name)
            if not (name == "planned_epochs" and value is None) and (not _is_int(value) or value < 1):
                raise PlanError(f"{name} must be a whole number of at least 1, got {value!r}; set {_flag(name)}")
            if value is not None and name != "steps_per_epoch" and value > MOST_EPOCHS:
                raise PlanError(
                    f"{name} is {value}, and a plan has at most {MOST_EPOCHS} epochs; lower {_flag(name)}: with more steps in an epoch "
                    "(a smaller --batch-size, more scenes) as many steps need fewer epochs"
                )
        for name in ("finetune", "disable_progressive_unfreeze"):
            if not isinstance(getattr(self, name), bool):
                raise PlanError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if not _is_int(self.finetune_layers):
            raise PlanError(
                f"finetune_layers must be a whole number, got {self.finetune_layers!r}; 0 opens the whole backbone"
            )
        self._check_number(
            "thaw_coupling", self.thaw_coupling, low=0.0, remedy="0 makes the thaw ignore the distillation weight"
        )
        for name in ("distill_temp_start", "distill_temp_end"):
            self._check_number(name, getattr(self, name), above=0.0, remedy="1 leaves the maps as they are")
        self._check_number("lr", self.lr, above=0.0, remedy="1e-3 is the default")
        if self.backbone_lr is not None:
            self._check_number(
                "backbone_lr", self.backbone_lr, above=0.0, remedy="leave --finetune out to keep the backbone frozen"
            )
        self._check_number(
            "layer_decay", self.layer_decay, above=0.0, high=1.0, remedy="1 gives every stage the same rate"
        )
        self._check_number("final_lr_ratio", self.final_lr_ratio, low=0.0, high=1.0, remedy="0.01 is the default")
        for name, known in (("lr_schedule", ("cosine", "constant")), ("distill_temp_shape", ("linear", "cosine"))):
            if getattr(self, name) not in known:
                raise PlanError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        for name in ("initial_freeze_epochs", "unfreeze_interval", "warmup", "thaw_warmup"):
            try:
                Duration.parse(getattr(self, name))
            except PlanError as error:
                raise PlanError(f"{name}: {error}") from None
        if self.progressive and Duration.parse(self.unfreeze_interval).amount <= 0:
            raise PlanError(
                f"unfreeze_interval must be above 0 with progressive unfreezing, got {self.unfreeze_interval!r}: "
                "nothing is being unfrozen; set --unfreeze-interval, or give --disable-progressive-unfreeze, or "
                "--finetune-layers 0 to open everything at once"
            )
        self._check_curve("distill_weight", self.distill_weight, zero=True)
        if self.distill_temperature is not None:
            self._check_curve("distill_temperature", self.distill_temperature, zero=False)

    def _check_number(
        self,
        name: str,
        value: Any,
        low: float = -math.inf,
        above: float = -math.inf,
        high: float = math.inf,
        remedy: str = "",
    ) -> None:
        real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not real or value < low or value <= above or value > high:
            bounds = [f"at least {low:g}"] if low > -math.inf else [f"above {above:g}"]
            bounds += [f"at most {high:g}"] if high < math.inf else []
            raise PlanError(f"{name} must be {' and '.join(bounds)}, got {value!r}; {remedy}")

    def _check_curve(self, name: str, spec: CurveSpec, zero: bool) -> None:
        try:
            curve = parse_curve(spec)
            curve.check(self.horizon, self.steps_per_epoch)
        except PlanError as error:
            raise PlanError(f"{name}: {error}") from None
        lowest = min(curve.levels())
        if lowest < 0 or (lowest == 0 and not zero):
            bound = "not be negative" if zero else "stay above 0"
            raise PlanError(
                f"{name} must {bound}, got '{curve.describe()}' with {lowest:g}; give other values to {_flag(name)}"
            )
        if isinstance(spec, Mapping | Curve):
            object.__setattr__(self, name, curve.describe())

    @property
    def horizon(self) -> int:
        """Epochs over which curves, percentages and rates are laid out."""
        return self.epochs if self.planned_epochs is None else self.planned_epochs

    @property
    def progressive(self) -> bool:
        """Whether blocks are added in the course of the run."""
        return self.finetune and self.finetune_layers > 0 and not self.disable_progressive_unfreeze

    @property
    def backbone_rate(self) -> float:
        """Peak learning rate of the backbone."""
        return self.lr / 10 if self.backbone_lr is None else self.backbone_lr

    @property
    def weight_curve(self) -> Curve:
        """The distillation weight over the run."""
        return parse_curve(self.distill_weight)

    @property
    def temperature_curve(self) -> Curve:
        """The temperature over the run."""
        if self.distill_temperature is not None:
            return parse_curve(self.distill_temperature)
        return Ramp(self.distill_temp_shape, float(self.distill_temp_start), float(self.distill_temp_end))

    @cached_property
    def warmup_steps(self) -> float:
        """`warmup` in (real-valued) steps."""
        return self.epochs_of(self.warmup) * self.steps_per_epoch

    @cached_property
    def thaw_warmup_steps(self) -> float:
        """`thaw_warmup` in (real-valued) steps."""
        return self.epochs_of(self.thaw_warmup) * self.steps_per_epoch

    def epochs_of(self, duration: DurationSpec) -> float:
        """A duration in real-valued epochs of this run."""
        return Duration.parse(duration).in_epochs(self.horizon, self.steps_per_epoch)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, durations and curves as text that reads back; equal schedules give equal dicts."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("initial_freeze_epochs", "unfreeze_interval", "warmup", "thaw_warmup"):
            values[name] = Duration.parse(values[name]).describe()
        for name in ("distill_weight", "distill_temperature"):
            if values[name] is not None:
                values[name] = parse_curve(values[name]).describe()
        return values


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
