"""Models and their processors from names and folders."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import transformers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import (
    PROCESSOR_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    AutoVideoProcessor,
    ImageProcessingMixin,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import is_torchvision_available

from fopru import pocket
from fopru.arguments import hint
from fopru.families import Family

HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""The keyword arguments that say where files come from: they hold for the processor too."""


def load(model: str | Path = "pocket", **kwargs: Any) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a vision-language model and its processor, ready to answer.

    Both are made by transformers' Auto classes, and the model is in eval mode. Pictures are
    prepared with PIL whether or not torchvision is installed, so that results do not depend on it.
    Videos need torchvision: without it the processor takes pictures alone, and raises an
    ImportError that says so when it gets a video.

    Args:
        model: "pocket" for the embedded model, else a Hugging Face id or a folder.
        kwargs: Arguments for the model's `from_pretrained`, such as `dtype`, `device_map` or
            `revision`.

    Raises:
        UnsupportedModelError: fopru has no adapter for this type of model.
        ValueError: `model` is neither "pocket", nor a folder, nor written like a Hugging Face id.
        OSError: a file is missing or damaged, or the Hugging Face Hub does not have it or cannot be
            reached.
        ImportError: a package that the model or its processor needs is not installed.

    Example:
        >>> model, processor = fopru.load("pocket")
        >>> model, processor = fopru.load("llava-hf/llava-1.5-7b-hf", dtype="bfloat16")
    """
    source = _source(model)
    hub = {name: kwargs.pop(name) for name in HUB if name in kwargs}
    if isinstance(source, str) and not hub.get("local_files_only") and not _hub_answers():
        hub["local_files_only"] = True
    with _naming(model, "its configuration"):
        config = AutoConfig.from_pretrained(source, **hub)
    Family.kind(config)  # refused before anything large is loaded
    with _naming(model, "its processor"):
        processor = _processor(source, config, hub)
    with _naming(model, "its weights", (OSError, SafetensorError)):  # a ValueError: of kwargs
        net = AutoModelForImageTextToText.from_pretrained(source, **kwargs, **hub)
    return net.eval(), processor


def _source(model: str | Path) -> str | Path:
    """Return a folder as a Path, or an id of the Hugging Face Hub as it is.

    Raises:
        ValueError: it is neither.
    """
    if model == "pocket":
        return pocket.folder()
    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise ValueError(f"model={str(model)!r}: the folder holds no model (config.json).")
        return Path(model)
    name = str(model)
    if "/" not in name:
        raise ValueError(
            f"model={name!r}: must be 'pocket', a folder, or a Hugging Face id, which has a slash."
            f"{hint(name, ['pocket'])}"
        )
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ValueError(f"model={name!r}: there is no such folder.") from None
    return name


def _hub_answers() -> bool:
    """Return whether the Hub answers at all: transformers would ask for every file six times."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=5)
    except Exception:  # whatever fails in between, what is left is the cache
        return False
    return True


@contextmanager
def _naming(
    model: str | Path, part: str, errors: tuple[type[Exception], ...] = (OSError, ValueError)
) -> Iterator[None]:
    """Turn what transformers says of a missing or damaged file into one sentence."""
    try:
        yield
    except errors as error:
        reason = re.split(r"(?<=[.!?])\s", " ".join(str(error).split()))[0]
        raise OSError(f"model={str(model)!r}: {part} cannot be loaded ({reason})") from error


def _processor(source: str | Path, config: PreTrainedConfig, hub: dict[str, Any]) -> ProcessorMixin:
    """Return the processor, its picture part PIL's, and without a video part where torchvision is
    missing."""
    files = ("processor_config.json", "preprocessor_config.json")
    if isinstance(source, Path) and not any((source / file).is_file() for file in files):
        raise OSError(f"the folder has neither {' nor '.join(files)}.")
    settings, _ = ProcessorMixin.get_processor_dict(source, **hub)
    kind = _kind(source, config, settings, hub)
    readers = {
        "tokenizer": AutoTokenizer.from_pretrained,
        "feature_extractor": AutoFeatureExtractor.from_pretrained,  # of sounds
        "image_processor": Family.kind(config).images,
    }
    if is_torchvision_available():
        readers["video_processor"] = AutoVideoProcessor.from_pretrained
    elif "video_processor" in kind.get_attributes():
        kind = _without_videos(kind)
        readers["video_processor"] = lambda *_, **__: None
    names = [name for name in inspect.signature(kind).parameters if name in readers]
    return kind.from_args_and_dict([readers[name](source, **hub) for name in names], settings)


def _kind(
    source: str | Path, config: PreTrainedConfig, settings: dict[str, Any], hub: dict[str, Any]
) -> type[ProcessorMixin]:
    """The class of processor that the files name, as transformers' AutoProcessor takes it, else the
    one for this type of model."""
    name = settings.get("processor_class")
    if name is None:
        images, _ = ImageProcessingMixin.get_image_processor_dict(source, **hub)
        name = images.get("processor_class")
    try:
        if (kind := getattr(transformers, str(name), None)) is not None:
            return kind
        if type(config) not in PROCESSOR_MAPPING:
            raise ValueError(f"its files name no class of transformers: processor_class={name!r}.")
        return PROCESSOR_MAPPING[type(config)]
    except ModuleNotFoundError as error:  # it names the class; what the class imports caused it
        missing = error.__cause__.name if isinstance(error.__cause__, ImportError) else None
        raise ImportError(
            f"the processor of model type {config.model_type!r} wants {missing or 'a package'}, "
            f"which is not installed ({error})"
        ) from error


class NoVideos:
    """Stands in a processor for its video part, none of which can be made without torchvision."""

    num_frames = fps = None  # SmolVLM's chat template asks for them, for pictures too

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ImportError(
            "videos need torchvision, which is not installed: `pip install torchvision` (or "
            '`pip install "fopru[video]"`), and load the processor again.'
        )


class _Parts(ProcessorMixin):
    """Between a processor's class and transformers' own: a missing video part is no argument."""

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.pop("video_processor", None)
        super().__init__(*args, **kwargs)


def _without_videos(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """Return the class of processor with a stand-in for its video part."""

    class Processor(kind, _Parts):
        video_processor = NoVideos()

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in kind.get_attributes() if name != "video_processor"]

    Processor.__name__ = Processor.__qualname__ = kind.__name__  # as which it is saved
    return Processor
