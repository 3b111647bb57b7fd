"""Models and their processors from names and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from fopru import pocket


def load(model: str | Path = "pocket", **kwargs: Any) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A vision-language model and its processor, ready to answer.

    The same two objects as transformers' Auto classes give, in eval mode. Pictures are prepared
    with PIL whether or not torchvision is installed, so results do not depend on that.

    Args:
        model: "pocket" for the embedded model, else a Hugging Face id or a folder.
        kwargs: for the model's `from_pretrained`, such as `dtype` or `device_map`.

    Raises:
        OSError: there is no such model, or it cannot be reached.
    """
    source = pocket.folder() if model == "pocket" else model
    processor = AutoProcessor.from_pretrained(source, backend="pil")
    return AutoModelForImageTextToText.from_pretrained(source, **kwargs).eval(), processor
