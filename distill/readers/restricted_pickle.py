"""Reading a pickle without running any of it: plain containers, text, numbers and NumPy arrays, nothing else.

A pickle is a program whose instructions name Python callables and call them. Here every name is looked up in the short table below
and leads to a stand-in written in this file, never to the callable that the pickle means: the stand-ins keep raw bytes, and the arrays are
built from these afterwards by NumPy's own checked constructors. Any other name is refused, with that name, before anything of it is imported.

NumPy's ``ndarray.__setstate__`` and ``dtype.__setstate__`` are not called: a forged dtype state makes them read bytes as object pointers.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import DataError

# What unpickling damaged or hostile bytes raises, besides pickle's own error.
_DAMAGE = (
    pickle.UnpicklingError, EOFError, TypeError, ValueError, AttributeError, KeyError, IndexError, MemoryError, OverflowError, ImportError,
)
_CODE = re.compile(r"[<>|=]?(?:[biuf][1248]?|[?]|[SU]\d+)")


class _Name:
    """Stands for a class that is only mentioned: ``ndarray``, as the first argument of ``_reconstruct``."""

    __slots__ = ()


class _Dtype:
    """Stands for ``numpy.dtype``; ``value`` is a plain numeric or text type, None for a list of objects."""

    __slots__ = ("value",)

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(code, str) or (code not in ("O", "O8") and not _CODE.fullmatch(code)):
            raise pickle.UnpicklingError(f"dtype {code!r} is not a plain number or text")
        self.value = None if code.startswith("O") else np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">") and self.value is not None:
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stands for ``numpy.core.multiarray._reconstruct`` and the array that it makes; an array of objects stays a list."""

    __slots__ = ("shape", "value")

    def __init__(self, *_: Any) -> None:
        self.shape: tuple[int, ...] = ()
        self.value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self._fill(raw, dtype, shape, "F" if fortran else "C")

    def _fill(self, raw: Any, dtype: Any, shape: Any, order: Any) -> None:
        if not isinstance(dtype, _Dtype) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise pickle.UnpicklingError("an array's shape or dtype is damaged")
        self.shape = tuple(shape)
        if dtype.value is not None:
            self.value = np.frombuffer(_bytes(raw), dtype.value).reshape(self.shape, order="F" if order == "F" else "C")
        elif isinstance(raw, list) and order == "C" and len(raw) == math.prod(self.shape):
            self.value = raw
        else:
            raise pickle.UnpicklingError("an array of objects is not a list of them")


class _Buffer(_Array):
    """Stands for ``numpy.core.numeric._frombuffer``, by which protocol 5 writes arrays."""

    __slots__ = ()

    def __init__(self, raw: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> None:
        self._fill(raw, dtype, shape, order)


class _Scalar:
    """Stands for ``numpy.core.multiarray.scalar``."""

    __slots__ = ("value",)

    def __init__(self, dtype: _Dtype, raw: Any = b"") -> None:
        if not isinstance(dtype, _Dtype) or dtype.value is None:
            raise pickle.UnpicklingError("a number's dtype is damaged")
        self.value = np.frombuffer(_bytes(raw), dtype.value, count=1)[0].item()


class _Bytes:
    """Stands for ``_codecs.encode``, ``bytes`` and ``bytearray``, by which the older protocols write bytes."""

    __slots__ = ("value",)

    def __init__(self, raw: Any = "", encoding: str = "latin1") -> None:
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
        self.value = _bytes(raw)


def _bytes(raw: Any) -> bytes:
    if isinstance(raw, _Bytes):
        return raw.value
    if isinstance(raw, bytes | bytearray):
        return bytes(raw)
    if isinstance(raw, str):
        return raw.encode("latin1")
    raise pickle.UnpicklingError(f"bytes are a {type(raw).__name__}")


_MULTIARRAY: dict[str, type] = {"_reconstruct": _Array, "scalar": _Scalar}
_BUILTINS: dict[str, type] = {"set": set, "frozenset": frozenset, "bytes": _Bytes, "bytearray": _Bytes}
_NUMERIC: dict[str, type] = {"_frombuffer": _Buffer}
ADMITTED: dict[str, dict[str, type]] = {
    "numpy": {"ndarray": _Name, "dtype": _Dtype},
    "numpy.core.multiarray": _MULTIARRAY,
    "numpy._core.multiarray": _MULTIARRAY,
    "numpy.core.numeric": _NUMERIC,
    "numpy._core.numeric": _NUMERIC,
    "_codecs": {"encode": _Bytes},
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,
    "collections": {"OrderedDict": OrderedDict},
}


class _Unpickler(pickle.Unpickler):
    refused = ""

    def find_class(self, module: str, name: str) -> type:
        if name not in ADMITTED.get(module, ()):
            self.refused = f"{module}.{name}"
            raise pickle.UnpicklingError(f"{self.refused} is not admitted")
        return ADMITTED[module][name]


def load_restricted(file: Path) -> Any:
    """What the pickle ``file`` holds, of plain containers, text, numbers and NumPy arrays.

    Raises :class:`DataError` for a pickle that names anything else (the name is in the message) and for one that is damaged.
    """
    with file.open("rb") as stream:
        # Pickles of Python 2 hold an array's bytes as text.
        reader = _Unpickler(stream, encoding="latin1")
        try:
            return _settled(reader.load(), {})
        except RecursionError:
            raise DataError(f"{file} is nested too deeply to be annotations; get the published file") from None
        except _DAMAGE as error:
            if reader.refused:
                raise DataError(
                    f"{file} is refused: it names {reader.refused}, and a pickle that may be read here holds containers, text, numbers and "
                    "NumPy arrays only; get the published file, or convert it to JSON where you trust it"
                ) from None
            cause = str(error) or type(error).__name__
            raise DataError(f"{file} cannot be read as a pickle ({cause}); get the published file again") from None


def _settled(value: Any, done: dict[int, Any]) -> Any:
    """``value`` with every stand-in replaced by what it stands for. Containers are copied, each once: ``done`` holds them by identity."""
    if not isinstance(value, _Array | _Scalar | _Bytes | _Name | _Dtype | type | dict | list | tuple | set | frozenset):
        return value
    if id(value) not in done:
        done[id(value)] = _replaced(value, done)
    return done[id(value)]


def _replaced(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, _Array) and isinstance(value.value, list):
        objects = np.empty(len(value.value), dtype=object)
        objects[:] = [_settled(entry, done) for entry in value.value]
        return objects.reshape(value.shape).tolist()
    if isinstance(value, _Array | _Scalar | _Bytes):
        return value.value
    if isinstance(value, dict):
        return {_settled(key, done): _settled(entry, done) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        kind = set if isinstance(value, frozenset) else type(value)
        return kind(_settled(entry, done) for entry in value)
    raise pickle.UnpicklingError("it holds a type where a value is expected")
