"""Picture files, which are not to be trusted."""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The decoders that untrusted files may reach; none of them starts another program."""

MIN_SIDE, MAX_ASPECT = 8, 100


def load_image(path: str | Path) -> Image.Image:
    """Read a picture file as RGB, upright.

    Transparency is laid on white, 16-bit grey scaled to 8; of an animation the first frame is
    taken, with a warning.

    Raises:
        ValueError: the file cannot be read as a picture, or is too small, long or large for one.
    """
    if re.match(r"\w{2,}:/", str(path)):  # a Path has lost the second slash
        raise ValueError(
            f"{path}: addresses are not fetched; download the picture, or in a shell "
            "`curl -L ADDRESS | fopru ask - QUESTION`."
        )
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give one picture in it.")
    try:
        with path.open("rb") as file:
            return open_image(file, str(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file.") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None


def open_image(file: BinaryIO, name: str) -> Image.Image:
    """Read the picture in an open file as RGB, upright; see `load_image`.

    Args:
        name: What messages call the file.

    Raises:
        ValueError: It is refused for a reason that `load_image` names.
    """
    with reading(file, name):
        image = Image.open(file, formats=FORMATS)
        frames = getattr(image, "n_frames", 1)
        image.load()
        image = ImageOps.exif_transpose(image)
    check_size(image, name)
    if frames > 1 and image.format != "MPO":
        warnings.warn(f"{name}: the first of {frames} frames is taken.", stacklevel=3)
    return to_rgb(image)


@contextmanager
def reading(file: BinaryIO, name: str) -> Iterator[None]:
    """Within the block, what PIL says of a file that cannot be read becomes a ValueError with its
    name, and a picture of too many pixels is such a file."""
    empty = not file.read(1)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(
            f"{name}: more than {Image.MAX_IMAGE_PIXELS:,} pixels, refused as a decompression bomb."
        ) from None
    except UnidentifiedImageError:
        reason = "the file is empty" if empty else f"it is none of {', '.join(FORMATS)}"
        raise ValueError(f"{name}: cannot be read as a picture ({reason}).") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{name}: cannot be read as a picture ({reason}).") from None


def check_size(image: Image.Image, name: str) -> None:
    """Raise a ValueError with this name for a picture that is too small, or too long and thin."""
    if min(image.size) < MIN_SIDE or max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError(
            f"{name}: {image.width} x {image.height} pixels; at least {MIN_SIDE} a side and at "
            f"most {MAX_ASPECT} times as long as wide."
        )


def to_image(image: Image.Image | str | Path) -> Image.Image:
    """Return a picture, or the one that a file holds, as RGB.

    Raises:
        ValueError: It is refused for a reason that `load_image` names.
    """
    return load_image(image) if isinstance(image, str | Path) else to_rgb(image)


def plain(image: Image.Image) -> Image.Image:
    """A picture in memory as `load_image` gives one in a file: upright, RGB, transparency on white,
    deep grey scaled to 8 bits."""
    return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture as RGB, with transparency laid on white and deep grey scaled to 8 bits."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        deep = image.mode.startswith("I;16") or values.max() > 255
        image = Image.fromarray((values / (257 if deep else 1)).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
