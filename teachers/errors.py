"""Errors of the teachers package that a user can mend; drawn as a tree in ``distill/errors.py``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WeightsError(ValueError):
    """Weights that do not fit: missing, unexpected or misshapen tensors, a digest that does not match, a cut file."""

    mendable = True


class CacheError(ValueError):
    """A cache that cannot serve: of another teacher, data set or view policy, or damaged."""

    mendable = True


class UnknownModelError(ValueError):
    """A name that no catalogue holds; the message offers the nearest ones."""

    mendable = True

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str], remedy: str) -> UnknownModelError:
        """Build the error for ``name`` among ``known``; ``remedy`` says what to run or write instead."""
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:5]
        return cls(f"unknown {kind} {name!r}; nearest: {', '.join(near)}; {remedy}")


class BlackBoxError(ValueError):
    """An ONNX file that cannot serve as a teacher: not one, without the inputs that its adapter declares, or with no runtime."""

    mendable = True


class DeviceError(ValueError):
    """A device that is not there, or that cannot do the precision or the compilation asked for."""

    mendable = True
