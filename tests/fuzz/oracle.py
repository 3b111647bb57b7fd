"""The right answer, computed apart from fopru's way of running.

The unpruned model runs the whole prompt, every token, without a cache. On entering each of its
decoder layers the attention mask is replaced by one made here: causal (Gemma: pictures both ways,
in Gemma 4 only where there is a window; windows counted over what the layer still sees), the
columns that were dropped for that layer masked out, the logarithms of the masses added. With
positions="reindex" the rotary embeddings are made anew too, else the model's own are kept.
`generate` with `use_cache=False` inside of this gives greedy and sampled words, beams, guidance and
processors, which then see the prompt as it was.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F

from fopru.families import Family


@contextmanager
def masked(model, prompt, columns, logs, reindex):
    """Run the model so that layer i attends to `columns[i]` of the prompt only.

    Args:
        prompt: the batch as the processor made it: "input_ids" (B, L), "attention_mask".
        columns: per layer (B, L) bool, padding False; None where nothing is dropped.
        logs: (B, L) added to the attention logits of each column, or None.
        reindex: whether the columns that a layer sees are numbered contiguously.
    """
    decoder = Family.of(model).decoder
    rows, length = prompt["input_ids"].shape
    there = prompt["attention_mask"].bool()
    kinds = prompt.get("token_type_ids")  # Gemma 3
    windowed = getattr(decoder.config, "use_bidirectional_attention", None) == "vision"
    if windowed:  # Gemma 4
        kinds = prompt["mm_token_type_ids"].clamp(max=1)
    picture = None
    if kinds is not None:
        starts = (kinds == 1) & (F.pad(kinds, (1, 0))[:, :-1] != 1)
        picture = starts.cumsum(1).where(kinds == 1, 0)  # (B, L) 1.. within a picture, else 0

    def mask_of(i, hidden):
        size = hidden.shape[1]
        times = hidden.shape[0] // rows
        seen = there if columns is None else columns[i] & there
        seen = F.pad(seen, (0, size - length), value=True).repeat_interleave(times, 0)  # (B', S)
        places = torch.arange(size)
        allowed = (places[None] <= places[:, None]).expand(len(seen), -1, -1)
        rank = seen.cumsum(1)
        window = getattr(decoder.layers[i].self_attn, "sliding_window", None)
        near = torch.ones_like(allowed)
        if window is not None:
            near = rank[:, :, None] - rank[:, None] < window
        both = torch.zeros_like(allowed)
        if picture is not None and (window is not None or not windowed):
            inside = F.pad(picture, (0, size - length)).repeat_interleave(times, 0)
            both = (inside[:, :, None] == inside[:, None]) & (inside[:, None] > 0)
        allowed = (allowed | both) & near if windowed else (allowed & near) | both
        allowed = allowed & seen[:, None]
        allowed = allowed | torch.eye(size, dtype=torch.bool)  # rows of dropped tokens: not read
        bias = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        if logs is not None:
            bias = bias + F.pad(logs, (0, size - length)).repeat_interleave(times, 0)[:, None]
        return bias[:, None], (rank - 1).clamp(min=0)

    def entering(i):
        def hook(layer, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            if hidden.shape[1] < length:  # guidance: the prompt's last token alone
                return None
            mask, positions = mask_of(i, hidden)
            kwargs = {**kwargs, "attention_mask": mask}
            if reindex:
                types = getattr(decoder.config, "layer_types", None)
                per_type = hasattr(decoder.rotary_emb, "layer_types")
                extra = (types[i],) if per_type else ()
                kwargs["position_embeddings"] = decoder.rotary_emb(hidden, positions, *extra)
            return args, kwargs

        return hook

    handles = [
        layer.register_forward_pre_hook(entering(i), with_kwargs=True)
        for i, layer in enumerate(decoder.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
