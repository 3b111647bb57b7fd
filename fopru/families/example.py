"""What a tiny random model of one type is made of: each adapter says it, and tests run on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image
from transformers import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

SIDE, PATCH = 32, 4
"""Pixels along the side of a square picture or tile, and of a patch: 8 x 8 patches."""
PINPOINTS = [[32, 64], [64, 32], [64, 64], [32, 96], [96, 32]]
"""Canvases of tiles that LLaVA-NeXT and its kin choose from, height and width in pixels."""

WORDS = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:", "\n"]
WORDS += [f"w{i}" for i in range(56)]
"""The vocabulary. "w53" opens a picture's tokens and "w54" closes them, in families that do so;
"w55" stands for each visual token of a video."""
IMAGE, START, END, VIDEO = (WORDS.index(word) for word in ("<image>", "w53", "w54", "w55"))

TEXT: dict[str, Any] = dict(
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=len(WORDS),
    max_position_embeddings=4096,
    pad_token_id=0,
    bos_token_id=2,
    eos_token_id=None,
)
"""Sizes of the language model."""
VIT: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4
)
"""Sizes of the vision tower."""
SQUARE: dict[str, Any] = dict(image_size=SIDE, patch_size=PATCH)


@dataclass(frozen=True)
class Example:
    """A tiny random model's configuration, and how a picture comes into its prompt.

    With `named`, `special`, `picture` and `settings` a folder can be written as one finds it on the
    Hub, which the model's real processor loads.
    """

    config: PreTrainedConfig
    images: BaseImageProcessor
    """What makes the pixels, with PIL."""
    runs: Callable[[dict[str, Any], list[list[Image]]], list[str]] | None = None
    """(what `images` made, the pictures row by row) -> the text of each picture, "<image>" being
    one visual token; it takes out what the model does not want. None where the text is nothing but
    as many as the model makes features."""
    nested: bool = False
    """Whether `images` takes the pictures row by row."""
    clip: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """What `images` made of frames -> what the model wants of a video of them, in families whose
    videos are pictures one after the other."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `images`."""
    kinds: str | None = None
    """The input that says which tokens are a picture's, where there is one."""
    answered: int = 0
    """What that input says of an answer's tokens. If it is not 0, the input tells the answer from
    the prompt, whose tokens are all 0 (PaliGemma)."""
    frame: str = ""
    """What stands before each frame of a video."""
    twin: bool = False
    """Whether the adapter sees no difference to another type: quick tests leave it out."""

    special: Mapping[str, str] = field(default_factory=dict)
    """Words of `WORDS` -> the family's own tokens, with the same ids."""
    named: Mapping[str, str] = field(default_factory=dict)
    """Special tokens that the processor asks its tokenizer for by name."""
    picture: str = "<image>"
    """What a picture is in the chat template."""
    video: str = "<video>"
    """What a video is there."""
    processor: str | None = None
    """The processor's class, where transformers has no other or a different one for the type."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the processor."""
