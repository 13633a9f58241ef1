"""How a run's ``[loss]`` section becomes weights of loss terms, and what is refused in it."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING

from distill.errors import ConfigurationError
from students.loss_weights import DISTILL_LOSSES, LossWeights

if TYPE_CHECKING:
    from distill.configuration import RunConfig

SIGMA = 3.0 / 64.0  # of the target, as a share of the map: the field's 3 cells of 64
NAMES = (*DISTILL_LOSSES, "inout")
FORMS = "kl, bce, mse or dist, or several by weight, 'kl:1, dist:0.5'; 'inout:0.2' sets what in/out distillation weighs (else --inout-weight)"


def loss_weights(config: RunConfig) -> LossWeights:
    """The weights that a run asks for. Raises ConfigurationError for a ``distill_loss`` that cannot be read."""
    named = _shares(config.distill_loss)
    return LossWeights(
        inout=config.inout_weight, bce=config.bce_weight, softmax=config.softmax_weight, kl=named.get("kl", 0.0),
        soft_bce=named.get("bce", 0.0), mse=named.get("mse", 0.0), dist=named.get("dist", 0.0), kd_inout=named.get("inout"),
        reliability=config.reliability,
    )


def check_losses(config: RunConfig) -> None:
    """Refuse losses that cannot be read, or that leave nothing to learn."""
    if not 0 < config.target_sigma <= 0.5:
        raise ConfigurationError(
            f"target_sigma is {config.target_sigma:g}; it is a share of the map, above 0 and at most 0.5 (3 cells of 64 are {SIGMA:g})"
        )
    weights = loss_weights(config)
    task = weights.inout + weights.bce + weights.softmax
    listened = config.schedule.get("distill_weight", 0) not in (0, "0", "0.0")
    taught = sum(weights.distillation.values()) + weights.inout_distillation
    if task == 0 and not (listened and taught):
        raise ConfigurationError(
            "every loss weighs 0, so there is nothing to learn from: give --bce-weight, --softmax-weight or --inout-weight a weight, or "
            "--distill-weight together with --distill-loss"
        )
    if listened and not taught:
        raise ConfigurationError(
            f"distill_weight is {config.schedule['distill_weight']!r}, but distill_loss {config.distill_loss!r} gives every term the weight 0; "
            "give one a weight, or --distill-weight 0"
        )


def _shares(text: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for entry in text.split(","):
        name, colon, number = (part.strip() for part in entry.partition(":"))
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigurationError(f"distill_loss {text!r} names {name!r}; {hint}give {FORMS}")
        if name in shares:
            raise ConfigurationError(f"distill_loss {text!r} names {name} twice; give each a single weight")
        shares[name] = _weight(number, text) if colon else 1.0
    # in/out alone leaves the maps to the default; to switch them off, say so: 'kl:0, inout:1'.
    return shares if set(shares) - {"inout"} else {"kl": 1.0, **shares}


def _weight(number: str, text: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ConfigurationError(f"distill_loss {text!r} has the weight {number!r}; a weight is a number of at least 0: give {FORMS}")
    return value
