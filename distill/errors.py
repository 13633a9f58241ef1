"""The errors that a user can mend, of all four packages, and the mark by which the console knows them.

Every exception below derives from the builtin that fits and carries the class attribute ``mendable = True``. The lower
packages define their own, so nothing imports upward; the console catches by the mark: one line and exit code 2 for what
carries it, a traceback and exit code 1 for everything else, which is a defect.

::

    ValueError
    ├── schedules.errors.PlanError           a schedule that cannot be compiled
    │   └── schedules.errors.StageError      a backbone whose parameters cannot be put in stages
    ├── schedules.errors.OptimizerStateError optimizer state of other parameters than the model's
    ├── teachers.errors.WeightsError         missing, unexpected or misshapen tensors; a digest that does not match
    ├── teachers.errors.UnknownModelError    no such teacher, backbone or student; the nearest names are offered
    ├── teachers.errors.BlackBoxError        an ONNX file that does not fit its adapter; ONNX Runtime is absent
    ├── teachers.errors.DeviceError          a device that is absent, or cannot do the precision asked for
    ├── teachers.errors.CacheError           a cache of another teacher, data set or view policy; a damaged shard
    ├── students.errors.RunError             a run directory that holds something else; a damaged checkpoint
    ├── students.errors.TrainingError        a loss that is not finite; nothing to learn from
    ├── students.errors.ExportError          an exported file that does not agree with its student
    ├── distill.errors.DataError             annotations that cannot be read
    │   ├── distill.errors.PictureError      a picture that is missing or cannot be decoded
    │   └── distill.errors.HeadsError        a heads file that does not fit the pictures
    ├── distill.errors.MetricError           a heatmap that cannot be scored (not finite, wrong shape)
    ├── distill.report.errors.ReportError    a file of a run that the report cannot read
    ├── distill.synth.errors.SynthError      a generated data set that cannot be written where it was asked for
    └── distill.errors.ConfigurationError    a run file or option that is unknown, misspelt or contradictory
    RuntimeError
    └── distill.errors.MissingExtraError     an optional library is absent; the extra to install is named

``OSError`` (a full disk, a read-only directory, a missing file) is the user's to mend as well, whoever raises it.
"""

from __future__ import annotations


class DataError(ValueError):
    """Annotations that cannot be read: file, line, value and remedy are in the message."""

    mendable = True


class PictureError(DataError):
    """A picture that is missing or cannot be decoded; the message names the file."""


class HeadsError(DataError):
    """A heads file that does not fit the pictures given with it."""


class MetricError(ValueError):
    """A heatmap or score that cannot be scored: not finite, or of the wrong shape."""

    mendable = True


class ConfigurationError(ValueError):
    """A run file or an option that is unknown, misspelt or contradictory."""

    mendable = True


class MissingExtraError(RuntimeError):
    """An optional library is absent; the message names the extra that brings it."""

    mendable = True


def is_mendable(error: BaseException) -> bool:
    """Whether the user can mend ``error``: it carries the mark, or it is the operating system's refusal."""
    return bool(getattr(error, "mendable", False)) or isinstance(error, OSError)
