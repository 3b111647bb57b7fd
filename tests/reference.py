"""Independent, slow answers that the package is compared with."""

import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fopru.families import Family


def eager_attention(model, pixel_values, block):
    """(tiles, h, T, T) float64 attention of one block, from the tower run in eager mode."""
    tower = model.base_model.vision_tower
    before = tower.config._attn_implementation
    tower.config._attn_implementation = "eager"
    try:
        maps = tower(pixel_values, output_attentions=True).attentions
    finally:
        tower.config._attn_implementation = before
    return maps[block].double()


def received(attention):
    """(tiles, P): mean over heads and patch queries, CLS row and column cut off."""
    return attention[:, :, 1:, 1:].mean((1, 2))


def given(attention):
    return attention[:, :, 1:, 1:].mean((1, 3))


def near(scores, kept, k, band=1e-6):
    """Whether `kept` are the k largest of float64 `scores`, but for those within `band` of the
    k-th."""
    border = scores.sort(descending=True).values[k - 1]
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[kept] = True
    sure_in, sure_out = scores > border + band, scores < border - band
    return len(kept) == k and bool(chosen[sure_in].all()) and not bool(chosen[sure_out].any())


@torch.no_grad()
def masked_logits(model, inputs, pruned, positions="preserve"):
    """Logits of the kept tokens in a full-length run with the dropped columns masked out, or, where
    layers have linear attention and no key to mask, in a run of each row without them.

    Returns one (tokens, vocabulary) tensor per batch row.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"].clone()
    placeholder = Family.of(model).reading(inputs).image_token_id
    for row, sample in enumerate(ids):
        flags = sample == placeholder
        kept = []
        for picture in pruned.images:
            if picture.sample == row:
                keep = torch.zeros(picture.n_full, dtype=mask.dtype)
                keep[picture.kept] = 1
                kept.append(keep)
        if kept:
            mask[row, flags] = torch.cat(kept)
    counted = inputs["attention_mask"] if positions == "preserve" else mask
    position_ids = (counted.cumsum(1) - 1).clamp(min=0)
    if hasattr(model.base_model, "get_rope_index"):  # Qwen-VL: rows for time, height and width
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        places, _ = model.base_model.get_rope_index(
            ids,
            mm_token_type_ids=inputs["mm_token_type_ids"],
            attention_mask=inputs["attention_mask"],
            **{name: inputs[name] for name in names if name in inputs},
        )
        position_ids = torch.cat([position_ids[None], places])
    if "linear_attention" in (getattr(model.config.get_text_config(), "layer_types", None) or ()):
        return [
            left_out(model, inputs, row, keep, position_ids[:, row])
            for row, keep in enumerate(mask.bool())
        ]
    arguments = {**inputs, "attention_mask": mask, "position_ids": position_ids}
    logits = model(**arguments).logits
    return [logits[row, mask[row].bool()] for row in range(len(ids))]


@torch.no_grad()
def left_out(model, inputs, row, keep, places, mask=None):
    """(tokens, vocabulary) logits of one row when nothing but the columns `keep` is there, at their
    `places`, (4, L); the model's own parts put together by hand.

    Args:
        mask: what the language model's layers of each kind get as a mask.
    """
    core, ids = model.base_model, inputs["input_ids"]
    video = "pixel_values_videos" in inputs
    kind = "video" if video else "image"
    names = ("pixel_values_videos" if video else "pixel_values", f"{kind}_grid_thw")
    encode = getattr(core, f"get_{kind}_features")
    features = encode(*(inputs[name] for name in names), return_dict=True).pooler_output
    embeds = model.get_input_embeddings()(ids)
    embeds[ids == getattr(model.config, f"{kind}_token_id")] = torch.cat(list(features))
    places = places[:, None, keep].clone()
    places[0] = torch.arange(places.shape[-1])  # gaps here would be borders between sequences
    hidden = core.language_model(
        inputs_embeds=embeds[row : row + 1, keep],
        position_ids=places,
        attention_mask=mask,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden)[0]


def eager_calls(model, block, run):
    """What one block of the vision tower attends to while `run()` goes through it in eager mode.

    Returns the float64 maps (tiles, h, T, T), one for each call of the attention function.
    """
    owners = {id(part) for part in block.modules()}
    home = next(p for p in block.modules() if type(p).__name__.endswith("Attention"))
    code = sys.modules[type(home).__module__]
    original, maps = code.eager_attention_forward, []

    def spy(module, *args, **kwargs):
        out, weights = original(module, *args, **kwargs)
        if id(module) in owners:
            maps.append(weights.double())
        return out, weights

    tower = home.config
    before, code.eager_attention_forward = tower._attn_implementation, spy
    tower._attn_implementation = "eager"
    try:
        run()
    finally:
        code.eager_attention_forward = original
        tower._attn_implementation = before
    return maps


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes under it."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return out
