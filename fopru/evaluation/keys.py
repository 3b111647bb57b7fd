"""What an answer depends on, as one key: a results file is asked by it and by nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from fopru.evaluation.tasks import Example
from fopru.videos import Video


def digest(*parts: Any) -> str:
    """Return the sha256 of values that JSON can hold, in hexadecimal."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def picture(image: Image.Image | Video) -> str:
    """Return the sha256 of a picture's mode, size and pixels, or of a video's frames and their
    pace, in hexadecimal."""
    if isinstance(image, Video):
        return digest(image.fps, [picture(frame) for frame in image.frames])
    found = hashlib.sha256(f"{image.mode} {image.size} ".encode())
    found.update(image.tobytes())
    return found.hexdigest()


def question(e: Example, prompt: str, pixels: str) -> str:
    """Return the digest of everything that a row takes from its question.

    Args:
        e: The question.
        prompt: Its text as the processor's chat template writes it.
        pixels: `picture` of the picture that is shown.
    """
    scene = [e.scene.get("variant"), e.scene.get("image_id")]
    judged = [e.answer, list(e.also), e.choices and list(e.choices), e.metric]
    boxes = [[float(edge) for edge in box] for box in e.evidence]
    return digest(e.id, e.task, prompt, judged, boxes, scene, pixels)


def conditions(model: PreTrainedModel, processor: ProcessorMixin, max_new_tokens: int) -> str:
    """Return the digest of everything that the rows of a run take from model and processor.

    The weights are not in it, nor versions: a file holds those of one model and version only.
    """
    config = model.config.to_dict()
    config.pop("_name_or_path", None)  # a folder may be moved
    parts = {"all": model.config, **{n: getattr(model.config, n) for n in model.config.sub_configs}}
    attention = {n: part._attn_implementation for n, part in parts.items() if part is not None}
    generation = model.generation_config.to_dict()
    parts = (processor.image_processor, getattr(processor, "video_processor", None))
    parts = [part.to_dict() for part in parts if hasattr(part, "to_dict")]
    described = [repr(sorted(values.items())) for values in (config, generation, *parts)]
    return digest(described, attention, str(model.dtype), max_new_tokens)
