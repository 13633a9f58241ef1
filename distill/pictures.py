"""Opening pictures: the one place where a picture file becomes pixels."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from distill.errors import PictureError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values that swap width and height


def read_bytes(path: Path) -> bytes:
    """The picture's file, whole; a missing one is a :class:`PictureError` that names it."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise PictureError(f"picture {path} does not exist; check the data set's folder or the path given") from None
    except (PermissionError, IsADirectoryError, NotADirectoryError, ValueError) as error:
        # The file's own fault, as a full table of open files would not be: one scene, which may be skipped. A zero byte in a name is a ValueError.
        reason = error.strerror if isinstance(error, OSError) else error
        raise PictureError(f"picture {path} cannot be read ({reason}); replace the file, or make it readable") from None


def decode(data: bytes, path: Path, *, exif: bool = False) -> np.ndarray:
    """Decode a picture to uint8 RGB ``[H,W,3]``.

    ``exif`` turns the picture upright as its EXIF orientation says: right for a user's photograph, wrong for data sets,
    whose annotations count the stored pixels. Raises :class:`PictureError` for a file that is no picture or is cut short.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if exif:
                ImageOps.exif_transpose(picture, in_place=True)
            shown = _eight_bits(picture)
            if shown.mode in ("RGBA", "LA", "PA") or "transparency" in shown.info:
                # A transparent picture is seen on white, as every viewer shows it.
                layer = shown.convert("RGBA")
                ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
                return np.array(Image.alpha_composite(ground, layer).convert("RGB"))
            # Its own memory, which may be written to as torch wants it; converting what is RGB already would copy once more.
            return np.array(shown if shown.mode == "RGB" else shown.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(
            f"picture {path} cannot be decoded ({_reason(error)}); replace the file, or leave it out with `distill cache build --on-error skip` or "
            "`distill predict --on-error skip`"
        ) from None


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits as 8: Pillow's own conversion cuts off at 255, which turns nearly all of it white. ``ValueError`` for 32 bits."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):  # older Pillows read PNG as "I"
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError("its values have 32 bits and no agreed range, save it with 8 or 16")
    return picture


def load_picture(path: Path, *, exif: bool = False) -> np.ndarray:
    """Read and decode one picture to uint8 RGB ``[H,W,3]``."""
    return decode(read_bytes(path), path, exif=exif)


def picture_size(path: Path, *, exif: bool = False) -> tuple[int, int]:
    """(width, height) in pixels from the file's header, without decoding it; ``exif``: of the picture held upright."""
    try:
        with Image.open(path) as picture:
            return upright_size(picture) if exif else picture.size
    except FileNotFoundError:
        raise PictureError(f"picture {path} does not exist; check the data set's folder or the path given") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"picture {path} cannot be opened ({_reason(error)}); replace the file") from None


def _reason(error: Exception) -> str:
    """Pillow's words; of a file that is no picture they hold an address in memory, and a cache's shard records the reason."""
    return "it is no picture of a known format" if isinstance(error, UnidentifiedImageError) else str(error)


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened picture, held as its EXIF orientation says."""
    sideways = picture.getexif().get(_ORIENTATION) in _SIDEWAYS
    return (picture.height, picture.width) if sideways else picture.size


def digest_bytes(data: bytes) -> bytes:
    """16-byte digest of a picture's file, as the cache records it."""
    return hashlib.blake2b(data, digest_size=16).digest()
