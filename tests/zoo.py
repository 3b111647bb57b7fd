"""Tiny random models of every family, and inputs for them: made here, nothing is downloaded.

Processors of some families want torchvision, so prompts are put together here: each image processor
makes the pixels, the model itself says how many tokens a picture becomes.
"""

import re

import numpy as np
import tiny
import torch
import transformers as hf
from tiny import IMAGE_TOKEN_ID, PATCH, PINPOINTS, SIDE, WORDS

import fopru

VIDEO_TOKEN_ID = WORDS.index("w55")
FAMILIES = [
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
    "idefics3",
    "smolvlm",
    "gemma3",
]
VIDEO = ["llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
NEW = FAMILIES[2:]

TEXT = dict(
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
VIT = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
QWEN = dict(depth=4, num_heads=4, patch_size=PATCH, spatial_merge_size=2, temporal_patch_size=2)
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}


def config(family):
    image = dict(image_size=SIDE, patch_size=PATCH)
    ids = dict(image_token_id=IMAGE_TOKEN_ID)
    both = dict(**ids, video_token_id=VIDEO_TOKEN_ID)
    if family == "llava_onevision":
        return hf.LlavaOnevisionConfig(
            vision_config=hf.SiglipVisionConfig(**VIT, **image),
            text_config=hf.Qwen2Config(**TEXT),
            image_token_index=IMAGE_TOKEN_ID,
            video_token_index=VIDEO_TOKEN_ID,
            image_grid_pinpoints=PINPOINTS,
            vision_aspect_ratio="anyres_max_2",
        )
    if family == "qwen2_vl":
        vision = dict(**QWEN, embed_dim=32, hidden_size=48, mlp_ratio=2)
        return hf.Qwen2VLConfig(
            vision_config=vision, text_config={**TEXT, "rope_parameters": ROPE}, **both
        )
    if family == "qwen2_5_vl":
        vision = dict(**QWEN, hidden_size=32, intermediate_size=48, out_hidden_size=48)
        vision |= dict(window_size=4 * PATCH, fullatt_block_indexes=[1, 3])
        return hf.Qwen2_5_VLConfig(
            vision_config=vision, text_config={**TEXT, "rope_parameters": ROPE}, **both
        )
    if family == "qwen3_vl":
        vision = dict(**QWEN, hidden_size=32, intermediate_size=48, out_hidden_size=48)
        vision |= dict(num_position_embeddings=64, deepstack_visual_indexes=[0, 2])
        rope = {**ROPE, "mrope_interleaved": True}
        text = {**TEXT, "num_hidden_layers": 9, "head_dim": 12, "rope_parameters": rope}
        return hf.Qwen3VLConfig(vision_config=vision, text_config=text, **both)
    if family == "internvl":
        vision = hf.InternVLVisionConfig(
            **VIT, image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH], use_qk_norm=True
        )
        return hf.InternVLConfig(
            vision_config=vision, text_config=hf.Qwen2Config(**TEXT), image_seq_length=16, **ids
        )
    if family == "idefics3":
        return hf.Idefics3Config(
            vision_config=dict(**VIT, **image), text_config=hf.LlamaConfig(**TEXT), **ids
        )
    if family == "smolvlm":
        return hf.SmolVLMConfig(
            vision_config=dict(**VIT, **image), text_config=hf.LlamaConfig(**TEXT), **ids
        )
    return hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**VIT, **image, vision_use_head=False),
        text_config=hf.Gemma3TextConfig(**TEXT, head_dim=12, sliding_window=512),
        mm_tokens_per_image=16,
        image_token_index=IMAGE_TOKEN_ID,
        boi_token_index=WORDS.index("w53"),
        eoi_token_index=WORDS.index("w54"),
    )


def model(family, attention="sdpa", dtype=torch.float32):
    """A model whose attention is far from uniform, so that rankings are not decided by noise."""
    if family in ("llava", "llava_next"):
        return tiny.model(family, attention=attention, dtype=dtype, layers=5)
    torch.manual_seed(0)
    net = hf.AutoModelForImageTextToText.from_config(config(family))
    tiny.shake(net)
    net.set_attn_implementation(attention)
    net.generation_config.eos_token_id = None
    net.generation_config.pad_token_id = 0
    net.generation_config.suppress_tokens = [IMAGE_TOKEN_ID, VIDEO_TOKEN_ID]
    return net.to(dtype).eval()


def image_processor(family):
    size = {"height": SIDE, "width": SIDE}
    if family in ("llava", "llava_next"):
        return tiny.processor(family).image_processor
    if family == "llava_onevision":
        processor = hf.LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=PINPOINTS)
    elif family.startswith("qwen"):
        processor = hf.Qwen2VLImageProcessorPil(
            patch_size=PATCH, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
        )
    elif family == "internvl":
        processor = hf.GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, max_patches=4)
    elif family in ("idefics3", "smolvlm"):
        kind = getattr(hf, f"{'Idefics3' if family == 'idefics3' else 'SmolVLM'}ImageProcessorPil")
        processor = kind(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    else:
        processor = hf.Gemma3ImageProcessorPil(size=size)
    return processor


def inputs(family, images, texts, padding_side="left"):
    """A batch; `<image>` in the texts becomes each picture's placeholders."""
    if family in ("llava", "llava_next"):
        return tiny.inputs(family, images, texts, padding_side)
    processor, net = image_processor(family), model(family)
    texts = [texts] if isinstance(texts, str) else texts
    nested = family in ("idefics3", "smolvlm", "internvl", "gemma3")
    counts, per_text, rest = [], [], list(images)
    for text in texts:
        n = text.count("<image>")
        per_text.append(rest[:n])
        rest = rest[n:]
    found = processor(images=per_text if nested else images, return_tensors="pt")
    data = {k: v for k, v in found.items() if k not in ("rows", "cols", "num_crops")}
    if family == "internvl":
        counts = [f"w53 {'<image> ' * (16 * int(n))}w54" for n in data.pop("num_patches")]
    elif family in ("idefics3", "smolvlm"):
        tile = f"w53 {'<image> ' * 16}w54"
        tiles = [r * c + 1 if r else 1 for row in _tiles(processor, per_text) for r, c in row]
        counts = [" ".join([tile] * n) for n in tiles]
    elif family == "gemma3":
        counts = [f"w53 {'<image> ' * 16}w54"] * len(data["pixel_values"])
    else:
        if family == "llava_onevision":
            data["batch_num_images"] = torch.tensor([len(row) for row in per_text if row])
        with torch.no_grad():
            output = net.get_image_features(**data, return_dict=True)
        counts = ["<image> " * len(tokens) for tokens in output.pooler_output]
    left = iter(counts)
    texts = [re.sub("<image>", lambda _: next(left), text) for text in texts]
    ids = tiny.tokenizer(padding_side)(texts, padding=True, return_tensors="pt")
    data |= {"input_ids": ids.input_ids, "attention_mask": ids.attention_mask}
    kinds = (ids.input_ids == IMAGE_TOKEN_ID).long()
    if family.startswith("qwen"):
        data["mm_token_type_ids"] = kinds
    if family == "gemma3":
        data["token_type_ids"] = kinds
    return data


def _tiles(processor, per_text):
    """Rows and columns of the tiles of each picture, text by text."""
    for row in per_text:
        if row:
            found = processor([row], return_row_col_info=True)
            yield list(zip(found["rows"][0], found["cols"][0], strict=True))


def video(family, frames=4):
    """One video and a prompt with it."""
    net = model(family)
    pictures = [tiny.image(64, 48, seed=seed) for seed in range(frames)]
    rng = np.random.default_rng(0)
    if family == "llava_onevision":
        data = {"pixel_values_videos": torch.tensor(rng.normal(size=(1, frames, 3, SIDE, SIDE)))}
    else:
        found = image_processor(family)(images=pictures, return_tensors="pt")
        _, height, width = found["image_grid_thw"][0].tolist()
        grid = torch.tensor([[frames // 2, height, width]])
        cells = int(grid.prod())
        patches = rng.normal(size=(cells, found["pixel_values"].shape[1]))
        data = {"pixel_values_videos": torch.tensor(patches), "video_grid_thw": grid}
        if family == "qwen2_5_vl":
            data["second_per_grid_ts"] = torch.tensor([2.0])
    data["pixel_values_videos"] = data["pixel_values_videos"].float()
    shown = {k: v for k, v in data.items() if k != "second_per_grid_ts"}
    with torch.no_grad():
        tokens = net.base_model.get_video_features(**shown, return_dict=True).pooler_output[0]
    if family == "qwen3_vl":  # each frame is announced
        runs = [["w3"] + ["w55"] * (len(tokens) // (frames // 2))] * (frames // 2)
    else:
        runs = [["w55"] * len(tokens)]
    words = ["w1", "w2", *(word for run in runs for word in run), "w4", "w5"]
    ids = torch.tensor([[WORDS.index(word) for word in words]])
    data |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family.startswith("qwen"):
        data["mm_token_type_ids"] = 2 * (ids == VIDEO_TOKEN_ID).long()
    return data


def undefined(name, family):
    """Why a method is refused on a family; None where it runs."""
    cls = fopru.METHODS[name]
    if "view" not in cls.shares:
        return "takes videos"
    newlines = family in ("llava_next", "llava_onevision")
    if {"cls", "cls_wide"} & cls.needs and family not in ("llava", "llava_next", "internvl"):
        return "no CLS token"
    if "vision" in cls.needs and not cls.selects():
        if newlines:
            return "newline tokens"
        if family == "internvl":
            return "several patches"
    if name == "pool" and newlines:
        return "newline token"
    if family == "qwen3_vl" and cls.merge is not fopru.Pruner.merge:
        return "first layers"
    return None


def matrix():
    """Methods and families, in Markdown."""
    head = "| | " + " | ".join(FAMILIES) + " |\n" + "|---" * (len(FAMILIES) + 1) + "|\n"
    rows = []
    for name in sorted(fopru.METHODS):
        cells = [undefined(name, family) or "✓" for family in FAMILIES]
        rows.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return head + "\n".join(rows)
