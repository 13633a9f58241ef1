"""One shard as a file: canonical safetensors bytes, and the checked, memory-mapped way back."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from teachers.cache.format import DIGEST_BYTES, canonical
from teachers.errors import CacheError

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "U8": np.dtype("u1"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 16 << 20


def _bytes(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, not copied."""
    return array.reshape(-1).view(np.uint8).data


def tensor_digest(tensors: Mapping[str, np.ndarray], start: bytes = b"") -> str:
    """The format's tensor digest (hex) of ``tensors``, after the bytes ``start``."""
    digest = hashlib.blake2b(start, digest_size=DIGEST_BYTES)
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(canonical([name, _NAMES[array.dtype], list(array.shape)]))
        if array.size:
            digest.update(_bytes(array))
    return digest.hexdigest()


def index_digest(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """The index digest of a shard: of all but its heatmaps."""
    small = {name: array for name, array in tensors.items() if name != "heatmaps"}
    free = {name: value for name, value in metadata.items() if name not in ("index", "payload")}
    return tensor_digest(small, canonical(free))


def _layout(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Names in file order: largest items first, so that every tensor is aligned; then by name."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def shard_chunks(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The file's bytes, piece by piece; the digests are computed here and added to the metadata."""
    ready = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    index, payload = index_digest(ready, metadata), tensor_digest(ready)
    header: dict[str, object] = {"__metadata__": {**metadata, "index": index, "payload": payload}}
    position = 0
    for name in _layout(ready):
        array = ready[name]
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    text = canonical(header)
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in _layout(ready):
        if ready[name].size:
            yield _bytes(ready[name])


class ShardFile:
    """A shard that is mapped into memory: ``tensors`` are views of the map, ``metadata`` strings. Nothing is read yet.

    ``stamp`` tells this file from another one that takes its name later (inode, time of change and size, as one number); a file
    whose stamp is ``known`` is taken for canonical. Raises ValueError for a file that is not a canonical safetensors file of the
    sizes that it states; OSError if it cannot be opened.
    """

    __slots__ = ("metadata", "stamp", "tensors")

    def __init__(self, path: Path | str, known: int | None = None) -> None:
        with open(path, "rb") as file:
            facts = os.fstat(file.fileno())
            size = facts.st_size
            self.stamp = hash((facts.st_ino, facts.st_mtime_ns, size)) & (2**64 - 1)
            if size < 8:
                raise ValueError(f"it has {size} bytes")
            # The map keeps the file open by itself.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (length,) = struct.unpack("<Q", mapped[:8])
        if length > min(size - 8, MAX_HEADER):
            raise ValueError(f"its header claims {length} bytes, the file has {size}")
        text = mapped[8 : 8 + length]
        header = json.loads(text)
        if self.stamp != known:
            form = canonical(header)
            if form + b" " * (-len(form) % 8) != text:
                raise ValueError("its header is not canonical")
        self.metadata: dict[str, str] = dict(header.pop("__metadata__"))
        self.tensors: dict[str, np.ndarray] = {}
        # One array over the map, the others over that: each costs an object, and a process may hold thousands of shards.
        whole = np.frombuffer(mapped, np.uint8)
        end = 0
        for name, entry in header.items():
            dtype, shape, (start, stop) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
            if stop - start != math.prod(shape) * dtype.itemsize or 8 + length + stop > size:
                raise ValueError(f"tensor {name} does not fit in its {size} bytes")
            self.tensors[name] = np.ndarray(shape, dtype, whole, 8 + length + start)
            end = max(end, stop)
        if 8 + length + end != size:
            raise ValueError(f"it has {size} bytes and should have {8 + length + end}")

    @classmethod
    def open(cls, path: Path | str, remedy: Callable[[], str], known: int | None = None) -> ShardFile:
        """Open ``path``; what is wrong becomes a :class:`CacheError` that ends with what ``remedy`` says."""
        try:
            return cls(path, known)
        except FileNotFoundError:
            raise CacheError(f"shard {path} is missing; {remedy()}") from None
        except (PermissionError, IsADirectoryError) as error:
            # Not damaged as far as one can see: to compute it again may be a waste.
            raise CacheError(f"shard {path} cannot be read ({error.strerror}); make it readable") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CacheError(f"shard {path} is damaged ({error}); {remedy()}") from None
