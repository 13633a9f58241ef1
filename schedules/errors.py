"""What the user can mend about a schedule. The console catches these by `mendable`; any other exception is a defect.

ValueError
├── PlanError                a value of the schedule, or a combination of values, that cannot be carried out
│   └── StageError           a backbone that cannot be cut into stages, or stages of another backbone
└── OptimizerStateError      a saved optimizer state that does not fit the model
"""


class PlanError(ValueError):
    """A schedule that cannot be carried out: a bad duration, curve, weight, rate or combination of them."""

    mendable = True


class StageError(PlanError):
    """A backbone without stages, a parameter in none, or stages applied to another backbone."""


class OptimizerStateError(ValueError):
    """A saved optimizer state that names unknown parameters or has other shapes."""

    mendable = True
