"""Tiny random models of each family with real processors: made here, nothing is downloaded."""

from copy import deepcopy

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

import fopru
from fopru.families import Family
from fopru.families.example import PATCH, PINPOINTS, SIDE, WORDS
from fopru.in_llm import InLLMPruner

IMAGE_TOKEN_ID = WORDS.index("<image>")

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {% for c in m.content %}"
    "{% if c.type == 'image' %}<image> {% elif c.type == 'video' %}<video> "
    "{% else %}{{ c.text }} {% endif %}{% endfor %}"
    "{% endif %}{% endfor %}ASSISTANT:"
)


def tokenizer(padding_side="left"):
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        padding_side=padding_side,
    )


def configs(family, layers=3, **vision):
    config = deepcopy(Family.registry[family].example(family).config)
    config.text_config.num_hidden_layers = layers
    for name, value in vision.items():
        setattr(config.vision_config, name, value)
    return config


def model(family="llava", seed=0, attention="sdpa", dtype=torch.float32, layers=3, **vision):
    """A model whose attention is far from uniform, so that rankings are not decided by noise."""
    kinds = {
        "llava": LlavaForConditionalGeneration,
        "llava_next": LlavaNextForConditionalGeneration,
    }
    torch.manual_seed(seed)
    net = kinds[family](configs(family, layers, **vision))
    shake(net)
    net.set_attn_implementation(attention)
    net.generation_config.eos_token_id = None
    net.generation_config.pad_token_id = 0
    net.generation_config.suppress_tokens = [IMAGE_TOKEN_ID]
    return net.to(dtype).eval()


def shake(net):
    """Random weights under which tokens differ, and attention dwells on some."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.8 / parameter.shape[-1] ** 0.5)
            if "q_proj" in name or "k_proj" in name or "qkv.weight" in name:
                parameter.mul_(2)


def processor(family="llava", padding_side="left"):
    common = dict(
        tokenizer=tokenizer(padding_side),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    if family == "llava":
        return LlavaProcessor(image_processor=CLIPImageProcessorPil(**size), **common)
    images = LlavaNextImageProcessorPil(**size, image_grid_pinpoints=PINPOINTS)
    return LlavaNextProcessor(image_processor=images, **common)


def image(width=40, height=40, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def inputs(
    family="llava", images=None, texts="USER: <image> w1 w2 w3 ASSISTANT:", padding_side="left"
):
    images = [image()] if images is None else images
    return processor(family, padding_side)(
        images=images, text=texts, return_tensors="pt", padding=True
    )


UNDEFINED = {
    (name, "llava_next") for name in ("pool", "visionzip", "prumerge", "prumerge+", "vscan")
}
"""(method, family) pairs that are refused."""


def method_cases():
    """(method, family) for every registered method that works before the language model."""
    return [
        (name, family)
        for family in ("llava", "llava_next")
        for name, method in sorted(fopru.METHODS.items())
        if (name, family) not in UNDEFINED
        and not issubclass(method, InLLMPruner)
        and "view" in method.shares
        and method.budgeted
    ]
