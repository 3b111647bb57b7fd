"""The pocket model's anatomy: LLaVA-1.5 at small scale, from Hugging Face classes only.

CLIP vision tower with a CLS token, features of the penultimate layer, two-layer projector, Llama
decoder (Liu et al., "Improved Baselines with Visual Instruction Tuning", CVPR 2024). Only sizes and
the vocabulary are ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
PROMPT_WORDS = ("user", "assistant", ":", "?", ".", ",")
DIGITS = tuple("0123456789")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for item in message['content'] if item['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}"
    "{{ item['text'] + ' ' }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: case-insensitive, punctuation apart, unknown words to `<unk>`.

    Numbers are spelled digit by digit as WordPiece does ("47" is "4", "##7"), so that every number
    can be read and decodes without spaces; no other word is split.
    """
    # sorted: the ids must not depend on the order in which generators name their words
    vocabulary = [*SPECIAL, *PROMPT_WORDS, *DIGITS, *(f"##{d}" for d in DIGITS)]
    vocabulary += sorted(set(words) - set(vocabulary))
    ids = {token: i for i, token in enumerate(vocabulary)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="<unk>", continuing_subword_prefix="##"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    backend.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", ids["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def processor(words: Iterable[str], image_size: int = 224, patch_size: int = 14) -> LlavaProcessor:
    """LLaVA's processor: CLIP's resize of the shorter edge and centre crop, on PIL."""
    square = {"height": image_size, "width": image_size}
    images = CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=square)
    return LlavaProcessor(
        images,
        tokenizer(words),
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLS, which "default" drops again
        chat_template=CHAT_TEMPLATE,
    )


def config(
    processor: LlavaProcessor,
    width: int = 128,
    heads: int = 2,
    vision_layers: int = 5,
    text_layers: int = 8,
) -> LlavaConfig:
    """The model's configuration for a processor, whose sizes and special tokens it takes over."""
    words = processor.tokenizer
    image_size = processor.image_processor.crop_size["height"]
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=vision_layers,
        num_attention_heads=heads,
        image_size=image_size,
        patch_size=processor.patch_size,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=text_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=True,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=(image_size // processor.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def model(config: LlavaConfig, seed: int = 0) -> LlavaForConditionalGeneration:
    """An untrained model: float32, initialised from the seed, the global generator untouched.

    The tower's position embeddings start as sines and cosines of row and column, and its queries
    equal to its keys, so that from the first step a patch looks at what is near and like itself
    (Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", ICML 2023).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        for name, projection in model.model.vision_tower.named_modules():
            if name.endswith("q_proj"):
                torch.nn.init.orthogonal_(projection.weight)
    tower = model.model.vision_tower
    (table,) = (p for n, p in tower.named_parameters() if "position_embedding" in n)
    with torch.no_grad():
        table[1:] = _waves(config.vision_config)  # CLS, the first, stays as it is
        for name, projection in tower.named_modules():
            if name.endswith("k_proj"):
                query = tower.get_submodule(name.replace("k_proj", "q_proj"))
                projection.weight.copy_(query.weight)
    return model


def _waves(vision: CLIPVisionConfig) -> torch.Tensor:
    """(P, d): sines and cosines of each patch's row and column at d / 4 wavelengths."""
    side = vision.image_size // vision.patch_size
    places = torch.arange(side, dtype=torch.float32)
    lengths = 4 * 16 ** torch.linspace(0, 1, vision.hidden_size // 4)  # 4 to 64 patches
    angles = 2 * torch.pi * places[:, None] / lengths
    waves = torch.cat([angles.sin(), angles.cos()], 1)  # (side, d / 2)
    grid = [waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)]
    return torch.cat(grid, 2).flatten(0, 1) / 2


def save(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: str | Path
) -> None:
    """Write both in Hugging Face format: weights in float16 on disk, float32 when loaded."""
    half = LlavaForConditionalGeneration(deepcopy(model.config))
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    rename(Path(folder) / "model.safetensors")
    loaded = deepcopy(half.config)
    for part in (loaded, loaded.vision_config, loaded.text_config):
        part.dtype = torch.float32
    loaded.save_pretrained(folder)
    processor.save_pretrained(folder)


def rename(file: Path) -> None:
    """Give the tower's weights the names they had before transformers 5, which it reads as well,
    and vLLM reads alone."""
    new, old = "vision_tower.", "vision_tower.vision_model."
    named = {k.replace(old, new).replace(new, old): x for k, x in load_file(file).items()}
    save_file(named, file, metadata={"format": "pt"})
