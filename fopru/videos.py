"""Videos: frames in memory, a folder of pictures, an animation, or a file that PyAV decodes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from fopru.arguments import check_integer
from fopru.pictures import FORMATS, check_size, load_image, plain, reading, to_rgb

ANIMATIONS = (".avif", ".gif", ".png", ".webp")
"""Endings of the files whose frames PIL reads; any other file goes to PyAV."""


@dataclass(frozen=True, eq=False)
class Video:
    """A video that a question can be about. A file or a folder is read when it is asked about.

    Args:
        source: The frames in order, as PIL pictures of one size or as an array (T, H, W, 3) of
            uint8; or a path: a folder of pictures, in the order of their names and the numbers in
            them, an animation (GIF, WebP, PNG, AVIF), or a film, which transformers reads with
            PyAV.
        fps: Frames a second, by which Qwen2.5-VL and Qwen3-VL tell the time. None is what the file
            says, and where it says nothing transformers takes 24.
        n_frames: At most so many frames are taken, evenly spaced; None takes all.

    Raises:
        ValueError: The frames are no pictures, none, or of several sizes; or a value is none of
            these.
    """

    source: Sequence[Image.Image] | np.ndarray | str | Path = field(repr=False)
    fps: float | None = None
    n_frames: int | None = None

    def __post_init__(self):
        if self.fps is not None and not (isinstance(self.fps, int | float) and self.fps > 0):
            raise ValueError(f"fps={self.fps!r}: must be a number above 0.")
        if self.n_frames is not None:
            check_integer("n_frames", self.n_frames, minimum=1)
        source = self.source
        if isinstance(source, str | Path):
            object.__setattr__(self, "source", Path(source))
            return
        if isinstance(source, np.ndarray):
            source = _pictures(source)
        if not isinstance(source, list | tuple) or not source:
            raise ValueError(
                f"video={source!r}: must be a list of PIL pictures, an array (T, H, W, 3), or the "
                "path of a file or folder."
            )
        for frame in source:
            if not isinstance(frame, Image.Image):
                raise ValueError(f"video: frame {frame!r} is no PIL picture.")
        object.__setattr__(self, "source", _alike("video", [plain(frame) for frame in source]))

    @property
    def frames(self) -> tuple[Image.Image, ...]:
        """The frames of a video that is in memory, RGB, all of one size."""
        if isinstance(self.source, Path):
            raise ValueError(f"{self.source}: is not read yet; `read()` gives its frames.")
        return self.source

    def read(self) -> Video:
        """The same video with those frames in memory that are taken.

        Raises:
            ValueError: The file cannot be read as a video, or its frames are of several sizes.
            ImportError: The file is a film, and PyAV is not installed.
        """
        if isinstance(self.source, Path):
            try:
                frames, fps, there = self._of(self.source)
            except OSError as error:
                why = error.strerror or error
                raise ValueError(f"{self.source}: cannot be read ({why}).") from None
            frames = _alike(str(self.source), frames)
        else:
            there, fps = len(self.source), None
            frames = [self.source[i] for i in self._places(there)]
        fps = self.fps or fps
        return Video(frames, fps and fps * len(frames) / there)

    def _of(self, path: Path) -> tuple[list[Image.Image], float | None, int]:
        """The frames that are taken, frames a second before that, and how many there are."""
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder.")
        if path.is_dir():
            return self._folder(path)
        film = path.suffix.lower() not in ANIMATIONS
        return self._film(path) if film else self._animation(path)

    def _places(self, n: int) -> list[int]:
        """Those of n frames that are taken."""
        k = min(n, self.n_frames or n)
        return [(2 * j + 1) * n // (2 * k) for j in range(k)]

    def _folder(self, path: Path) -> tuple[list[Image.Image], None, int]:
        known = {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
        files = sorted((f for f in path.iterdir() if f.suffix.lower() in known), key=_numbered)
        if not files:
            raise ValueError(f"{path}: holds no pictures ({', '.join(FORMATS)}).")
        return [load_image(files[i]) for i in self._places(len(files))], None, len(files)

    def _animation(self, path: Path) -> tuple[list[Image.Image], float | None, int]:
        with path.open("rb") as file, reading(file, str(path)):
            animation = Image.open(file, formats=FORMATS)
            there = getattr(animation, "n_frames", 1)
            places, frames, lasted = set(self._places(there)), [], 0.0
            for number, frame in enumerate(ImageSequence.Iterator(animation)):
                frame.load()
                lasted += frame.info.get("duration", 0) / 1000  # seconds
                if number in places:
                    frames.append(to_rgb(frame))
        return frames, there / lasted if lasted else None, there

    def _film(self, path: Path) -> tuple[list[Image.Image], float | None, int]:
        from transformers.utils import is_av_available
        from transformers.video_utils import load_video

        if not is_av_available():
            raise ImportError(
                f"{path}: films are read with PyAV, which is not installed: `pip install av` (or "
                '`pip install "fopru[video]"`). A folder of pictures or a GIF needs none.'
            )
        try:
            found, told = load_video(
                str(path),
                backend="pyav",
                sample_indices_fn=lambda metadata, **_: self._places(metadata.total_num_frames),
            )
        except (OSError, ValueError, IndexError) as error:  # of PyAV and of an empty file
            raise ValueError(f"{path}: cannot be read as a video ({error}).") from None
        return _pictures(found), told.fps, told.total_num_frames


def _pictures(frames: np.ndarray) -> list[Image.Image]:
    """(T, H, W, 3) uint8 as pictures."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"video: an array of shape {frames.shape} and {frames.dtype}; must be (T, H, W, 3) of "
            "uint8."
        )
    return [Image.fromarray(frame) for frame in frames]


def _alike(name: str, frames: Sequence[Image.Image]) -> tuple[Image.Image, ...]:
    """The frames, which are of one size that is fit for a picture."""
    check_size(frames[0], name)
    if len(sizes := {frame.size for frame in frames}) > 1:
        raise ValueError(f"{name}: frames of {len(sizes)} sizes; all must be of one size.")
    return tuple(frames)


def _numbered(path: Path) -> list[Any]:
    """Text and numbers of a file's name, by which frame 2 comes before frame 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]
