"""What is left of a picture and its prompt: the kept tokens, and the shorter inputs they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fopru.encoding import Encoded, EncodedImage
from fopru.families import Family, Grid

PER_TOKEN = {
    "input_ids": 0,
    "attention_mask": 0,
    "position_ids": 0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "labels": -100,
}
"""The inputs with one value per token, each with what fills the padding; input_ids are filled with
the model's pad token where it has one."""


class Merged(NamedTuple):
    """What a merging method makes of one view's N visual tokens."""

    kept: Tensor
    """(k,) int64, sorted and distinct: the places at which the new tokens stand."""
    features: Tensor
    """(k, d): the new tokens, as the language model gets them."""
    owner: Tensor | None = None
    """(N,) int64: which of the k new tokens each old one went into, -1 for none. None if each new
    token is the old one that stood at its place."""

    @classmethod
    def means(cls, kept: Tensor, features: Tensor, owner: Tensor) -> Merged:
        """Make each new token the mean of the features (N, d) of the old ones that go into it; each
        of the (N,) old ones goes into one."""
        old = features.to(owner.device).double()
        sums = old.new_zeros(len(kept), old.shape[1]).index_add_(0, owner, old)  # (k, d)
        means = sums / owner.bincount(minlength=len(kept))[:, None]
        return cls(kept, means.to(features), owner)


@dataclass(frozen=True, eq=False, repr=False)
class PrunedImage:
    """What was kept of one picture of N visual tokens. Its tensors are on the CPU."""

    sample: int
    """The batch row whose prompt holds the picture."""
    kept: Tensor
    """(k,) int64, sorted: the places of the kept tokens among the picture's visual tokens."""
    significance: Tensor | None
    """(N,) float32: the scores by which the method ranked, or None where it has none."""
    grid: Grid
    """Where the N tokens lie in the picture."""
    owner: Tensor
    """(N,) int64: for each visual token the kept one that it went into, as a place in `kept`, or -1
    where it was dropped. With `weights` a method that selects drops none: each goes to the
    kept token that is most like it."""

    def __repr__(self) -> str:
        return f"PrunedImage({self.n_kept} of {self.n_full} visual tokens, row {self.sample})"

    @cached_property
    def mass(self) -> Tensor:
        """(k,) int64: the number of visual tokens that each kept one stands for."""
        return self.owner[self.owner >= 0].bincount(minlength=self.n_kept)

    @cached_property
    def sources(self) -> list[Tensor]:
        """For each kept token the sorted places of the visual tokens that it stands for."""
        order = self.owner.argsort(stable=True)[(self.owner < 0).sum() :]
        return list(order.split(self.mass.tolist()))

    @property
    def n_full(self) -> int:
        """N, the number of visual tokens before pruning."""
        return self.grid.n_tokens

    @property
    def n_kept(self) -> int:
        """k, the number of visual tokens after pruning."""
        return len(self.kept)

    @property
    def view(self) -> Tensor:
        """(N,) int64: the view that each token is in; in LLaVA-NeXT 0 is the base view, 1 the
        tiles' canvas."""
        return self.grid.view

    @property
    def rows(self) -> Tensor:
        """(N,) int64: the row of each token within its view."""
        return self.grid.rows

    @property
    def columns(self) -> Tensor:
        """(N,) int64: the column of each token within its view, -1 for a newline token."""
        return self.grid.columns

    def box(self, i: int) -> tuple[float, float, float, float]:
        """Return the corners (x0, y0, x1, y1) of visual token i, in [0, 1] coordinates of its view.

        Raises:
            ValueError: token i is a newline, which covers nothing, or nothing is known of the
                tokens but their order.
        """
        if self.grid.flat:
            raise ValueError(
                f"i={i}: where in the picture a token sits is not known of this model type."
            )
        row, column = int(self.rows[i]), int(self.columns[i])
        if column < 0:
            raise ValueError(f"i={i}: that visual token is a newline and covers no patch.")
        height, width, _ = self.grid.views[int(self.view[i])]
        return column / width, row / height, (column + 1) / width, (row + 1) / height


class PrunedInputs(Mapping[str, Any]):
    """Inputs with the kept visual tokens only: `model.generate(**pruned)`, `model(**pruned)`.

    The pictures are in them as `mm_encoder_outputs`, already encoded. With `positions="preserve"`
    call `generate` with a KV cache (the default). Without one, transformers drops the attention
    mask, and then reads the gaps in `position_ids` as borders between packed sequences.

    Args:
        text: The inputs without pixels, such as input_ids and attention_mask.
        family: The adapter of the model's family.
        features: (k, d) per picture: its visual tokens.
        images: What was kept of each picture; empty where nothing was removed.
        columns: (B, L') int64, as in the attribute.
    """

    def __init__(
        self,
        text: Mapping[str, Any],
        family: Family,
        features: list[Tensor],
        images: tuple[PrunedImage, ...],
        columns: Tensor | None = None,
    ):
        self._text = dict(text)
        self.family = family
        self.features = features
        """(k, d) per picture: the kept tokens (Qwen3-VL: with what its first layers add to
        them)."""
        self.images = images
        """One `PrunedImage` per picture, in the order of the prompts."""
        self.columns = columns
        """(B, L') int64: the column of the whole prompt that each token of the shorter one comes
        from; None where nothing was removed."""

    def __getitem__(self, name: str) -> Any:
        if name == "mm_encoder_outputs":
            return self.family.encoder_outputs(self.features)
        return self._text[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._text
        yield "mm_encoder_outputs"

    def __len__(self) -> int:
        return len(self._text) + 1

    def __repr__(self) -> str:
        kept = ", ".join(f"{image.n_kept} of {image.n_full}" for image in self.images)
        return f"PrunedInputs({', '.join(self)}; visual tokens kept: {kept})"

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> PrunedInputs:
        """Return the same inputs on another device; `dtype` is that of the features."""
        text = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in self._text.items()}
        features = [feature.to(device=device, dtype=dtype) for feature in self.features]
        return PrunedInputs(text, self.family, features, self.images, self.columns)


def _shorten(
    encoded: Encoded, images: tuple[PrunedImage, ...], positions: str
) -> tuple[dict[str, Any], Tensor]:
    """Gather everything that has one value per token, (B, L) -> (B, L'), and pad again.

    Returns:
        The shorter inputs, and (B, L') the columns that they come from.
    """
    inputs = dict(encoded.inputs)
    ids = inputs["input_ids"]  # (B, L)
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask of shape {tuple(mask.shape)}: must be that of input_ids, "
            f"{tuple(ids.shape)}."
        )
    family = encoded.family
    if positions == "preserve":
        if inputs.get("position_ids") is None:
            grids = [image.grid for image in images]
            inputs["position_ids"] = family.position_ids(inputs, mask, grids)
    elif inputs.get("position_ids") is not None:
        raise ValueError(
            "position_ids were given, and positions='reindex' would number the tokens "
            "anew: use positions='preserve', or leave position_ids out."
        )
    inputs["attention_mask"] = mask

    kept = [torch.zeros(image.n_full, dtype=torch.bool) for image in images]
    for flags, image in zip(kept, images, strict=True):
        flags[image.kept] = True
    keep = mask.bool()  # (B, L)
    visual = ids == family.image_token_id
    keep[visual] = torch.cat(kept).to(keep.device)

    order = line_up(keep, pad_right=bool((mask[:, -1] == 0).any()))  # (B, L')
    padding = ~keep.gather(1, order)
    fill = PER_TOKEN | {"input_ids": _pad_token_id(family)}
    for name in fill.keys() & inputs.keys():
        if (values := inputs[name]) is not None:  # (..., B, L)
            places = order.expand(*values.shape[:-2], *order.shape)
            inputs[name] = values.gather(-1, places).masked_fill(padding, fill[name])
    if family.spatial:  # a first row that counts the tokens, and then time, height and width
        counted = numbered(inputs["attention_mask"])
        inputs["position_ids"] = torch.cat([counted[None], inputs["position_ids"][-3:]])
    return inputs, order


def shortened(
    encoded: Encoded, images: tuple[PrunedImage, ...], features: list[Tensor], positions: str
) -> PrunedInputs:
    """Return the inputs without the visual tokens that were not kept.

    Args:
        encoded: The pictures and their prompts.
        images: What was kept of each picture.
        features: (k, d) per picture: the kept tokens, or those that they were merged into.
        positions: "reindex" or "preserve".
    """
    text, columns = _shorten(encoded, images, positions)
    return PrunedInputs(text, encoded.family, features, images, columns)


def whole(encoded: Encoded) -> PrunedInputs:
    """Return the inputs with all visual tokens, their pictures encoded."""
    for image in encoded.images:
        check_entered(image, None)
    grids = [image.grid for image in encoded.images]
    inputs = dict(encoded.inputs)
    inputs |= all_positions(encoded.family, inputs, grids)
    return PrunedInputs(inputs, encoded.family, [image.whole for image in encoded.images], ())


def check_entered(image: EncodedImage, label: str | None) -> None:
    """Check that a picture went through the tower as a method wants it.

    Args:
        image: The picture, encoded.
        label: The method's, if it leaves patches out before the tower; None for all others.

    Raises:
        ValueError: other patches, or none, were left out.
    """
    by = None if image.entered is None else image.entered.by
    if by == label:
        return
    was = "with all its patches" if by is None else f"without the patches that {by!r} leaves out"
    now = "all of them" if label is None else f"those that {label!r} does not leave out"
    raise ValueError(
        f"this picture was encoded {was}, and now {now} are needed: encode it anew, with the "
        "pruner in encode(model, inputs, pruners=[...])."
    )


def all_positions(
    family: Family, inputs: Mapping[str, Any], grids: list[Grid]
) -> dict[str, Tensor]:
    """Return the position ids of whole prompts with encoded pictures, where the model makes them
    from the sizes of the pictures; nothing where it counts tokens."""
    if not family.spatial or inputs.get("position_ids") is not None:
        return {}
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
    positions = family.position_ids(inputs, mask, grids)[-3:]
    return {"position_ids": torch.cat([numbered(mask)[None], positions])}  # (4, B, L)


def numbered(mask: Tensor) -> Tensor:
    """Return position ids that count what is no padding in a mask: (B, L) -> (B, L)."""
    return (mask.bool().cumsum(1) - 1).clamp(min=0)


def line_up(keep: Tensor, pad_right: bool) -> Tensor:
    """Return the places of the kept tokens of each row, in order, at one end, and padding at the
    other: (B, L')."""
    length = int(keep.sum(1).max())
    order = (~keep if pad_right else keep).to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, :length] if pad_right else order[:, -length:]


def _pad_token_id(family: Family) -> int:
    """Return any id but the image token's: padding is masked, but placeholders are counted."""
    pad = family.config.get_text_config().pad_token_id
    return PER_TOKEN["input_ids"] if pad is None or pad == family.image_token_id else pad
