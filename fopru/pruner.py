"""The base of every pruning method: how many tokens to keep, and which."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fopru.applying import Before, Handle, Session, at_work, inferred_mask
from fopru.arguments import check_choice, check_integer, check_share, hint
from fopru.choosing import check_places, pruned_images
from fopru.encoding import ENTRY, VISION, Encoded, EncodedImage, Tap, encode
from fopru.families import Family, Grid, UnsupportedModelError
from fopru.picking import floor_share, in_proportion, top
from fopru.pruned import Merged, PrunedInputs, shortened
from fopru.significance import AXES


class Methods(dict[str, type["Pruner"]]):
    """Method names and their classes; an unknown name is answered with the closest one."""

    def __missing__(self, name: Any) -> type[Pruner]:
        raise KeyError(f"no method is called {name!r}.{hint(name, self)}")


METHODS = Methods()
"""Every registered method, by its name. Each class accepts `retention=`."""

POSITIONS = ("reindex", "preserve")
WEIGHTS = ("none", "mass", "restore")
PER = ("view", "clip")
RETENTION = 0.25
"""The share that is kept where neither `retention` nor `tokens` is given."""


@dataclass(frozen=True)
class Pruner:
    """A method that prunes visual tokens.

    A subclass overrides `score`, and `select` where it does more than keep the largest scores, or
    `merge` where it makes new tokens. `class Mine(Pruner, name="mine")` registers it in
    `fopru.METHODS`; without a name it works too, and is called by the name of its class.

    Args:
        retention: The share of each view's visual tokens to keep, in (0, 1]. Left out, and without
            `tokens`, it is 0.25.
        tokens: The exact number of visual tokens to keep of each picture instead, over all of its
            views, which share it in proportion to their sizes. `fopru.budgets.PAPERS` says what
            papers count.
        layer: The encoder block that the method reads, 0-based, negative from the end. None is the
            block whose output the model uses, as in FoPru. A method that reads no block refuses
            this argument.
        positions: How the kept tokens are numbered. "reindex" numbers the shorter prompt from 0
            without gaps, as FoPru's paper does; "preserve" keeps each token's original position
            id; None is the family's default.
        weights: "mass" lets the language model attend to each kept token as to all those that it
            stands for. If the method selects tokens, these are the ones most like the kept one
            (`fopru.picking.owners`). If it merges tokens, these are the ones that went into it:
            ToMe's proportional attention (Bolya et al., ICLR 2023, section 3). "restore" lets this
            count grow with the distance between query and key, to about twice far away, as RESTORE
            does (ICML 2026, arXiv 2606.01711). It is meant for positions="preserve": with "reindex"
            the distances are those of the new numbers. It needs one rotary embedding for all
            layers. `fopru.applying.weights` has formulas and sources. Weights work in `with
            pruner(model)` only, and not for methods inside the language model. A prompt from which
            nothing was pruned is left as it is. Layers with linear attention (three of four in
            Qwen3.5) have no keys to weigh: they read each kept token once.
        per: What has a budget of its own. "view" gives one to each view of a picture and to each
            frame of a video (in the Qwen families: to each pair of frames); "clip" lets all frames
            of a video share one, so that tokens compete across frames, and is refused for pictures.

    Raises:
        ValueError: a value is none of these, or both `retention` and `tokens` are given.

    Example:
        >>> with fopru.FoPru(retention=0.25)(model) as session:
        ...     out = model.generate(**inputs)
        >>> session.last.images[0].kept  # the places that stayed
    """

    retention: float | None = None
    _: KW_ONLY
    tokens: int | None = None
    layer: int | None = None
    positions: str | None = None
    weights: str = "none"
    per: str = "view"

    needs: ClassVar[frozenset[str]] = frozenset()
    """What the method reads beside the tokens: any of `fopru.significance.AXES`, "keys" (of the
    same block), "vision" (the tower's features), "text" (the prompt's), "grid" (where in the
    picture a token sits), "layers" (the language model's) and "pixels" (`enter` says by them what
    goes through the tower)."""

    shares: ClassVar[tuple[str, ...]] = PER
    """The values of `per` with which the method is defined. Without "view" it takes videos only."""

    fixed_k: ClassVar[bool] = True
    """Whether the number of kept tokens follows from sizes alone."""

    budgeted: ClassVar[bool] = True
    """Whether `retention` or `tokens` says how many are kept; if not, each picture does."""

    name: ClassVar[str]
    """What the method is called in `fopru.METHODS`, in tables and in errors."""

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.name = cls.__name__ if name is None else name
        if name is None:
            return
        other = METHODS.get(name, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"name={name!r}: {other.__qualname__} of {other.__module__} has that name already."
            )
        METHODS[name] = cls  # a class that is defined again, as in a notebook, replaces itself

    def __post_init__(self):
        if self.retention is not None and self.tokens is not None:
            raise ValueError(
                f"retention={self.retention} and tokens={self.tokens}: give one of them, not both."
            )
        if self.tokens is not None:
            check_integer("tokens", self.tokens, minimum=1)
        if self.retention is not None:
            check_share("retention", self.retention, "(0, 1]")
        if self.layer is not None:
            check_integer("layer", self.layer)
            if not self._axes():
                raise ValueError(
                    f"layer={self.layer}: method {self.name!r} reads no block of the vision "
                    "encoder; leave `layer` out."
                )
        check_choice("positions", self.positions, (None, *POSITIONS))
        check_choice("weights", self.weights, WEIGHTS)
        check_choice("per", self.per, self.shares)

    @property
    def share(self) -> float | None:
        """The share of visual tokens to keep, 0.25 if none was given; None if `tokens` was."""
        return RETENTION if self.retention is None and self.tokens is None else self.retention

    def _axes(self) -> frozenset[str]:
        """What the method reads of a block's attention."""
        return self.needs & {*AXES, "keys"}

    def attended(self, family: Family) -> str | None:
        """Which attention scores the tokens in this family: that of the CLS token ("cls"), or what
        patches receive ("received"). None for methods without that choice."""
        return None

    @property
    def label(self) -> str:
        """What tables call this pruner: its name, "-mass" or "-restore" where it is weighted, and
        arguments that are not their defaults. Retention, tokens, position ids and seed have columns
        of their own."""
        text = self.name if self.weights == "none" else f"{self.name}-{self.weights}"
        columns = ("retention", "tokens", "positions", "seed", "weights")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in columns and value != field.default:
                if isinstance(value, Pruner):
                    value = f"({value.label})" if "," in value.label else value.label
                text += f", {field.name}={value}"
        return text

    @classmethod
    def selects(cls) -> bool:
        """Whether kept tokens are tokens of the picture, chosen before the language model."""
        return cls.merge is Pruner.merge

    @property
    def asks(self) -> bool:
        """Whether the question decides what is kept."""
        return "text" in self.needs

    def numbering(self, family: Family) -> str:
        """How the kept tokens are numbered in this family: "reindex" or "preserve".

        Raises:
            UnsupportedModelError: positions="reindex" in a family whose position ids are places in
                the picture (M-RoPE), which cannot be numbered anew.
        """
        if self.positions == "reindex" and family.spatial:
            raise UnsupportedModelError(
                f"positions='reindex': {family.title} numbers visual tokens by time, height and "
                "width, which pruning leaves gaps in; use positions='preserve' or None."
            )
        return self.positions or family.positions

    def score(self, image: EncodedImage) -> Tensor | None:
        """The significance of each token of one view, or with per="clip" of all frames of a video:
        (N,), or None where the method has none.

        `select` and `merge` find it in `image.significance`, in float32 on the CPU.
        """
        return None

    def select(self, image: EncodedImage, k: int) -> Tensor:
        """The places of the k tokens to keep, of the view or clip that `score` gets: (k,) int64,
        sorted, distinct.

        The default keeps the k tokens of largest significance.
        """
        if image.significance is None:
            raise NotImplementedError(
                f"{type(self).__name__} must override one of `score`, `select` and `merge`."
            )
        return top(image.significance, k)

    def merge(self, image: EncodedImage, k: int) -> Merged:
        """The k tokens to keep, of the view or clip that `score` gets. A method that makes new
        tokens overrides this."""
        n = image.grid.n_tokens
        kept = torch.arange(n) if k == n else self.select(image, k).cpu()
        check_places(self, "select", kept, k, n)
        return Merged(kept, image.features[kept.to(image.features.device)])

    def taps(self, family: Family) -> set[Tap]:
        """What `encode` has to learn from the vision tower for this method.

        Raises:
            UnsupportedModelError: it needs what is not known of this family.
        """
        family.check(self.needs)
        taps = {Tap(family.block(self.layer), axis) for axis in self._axes()}
        also = {"vision": VISION, "pixels": ENTRY}
        return taps | {tap for need, tap in also.items() if need in self.needs}

    def parts(self, grid: Grid) -> tuple[Grid, ...]:
        """The parts of a picture or video with this grid that each have a budget, in order: every
        view, or with per="clip" all frames, and the newline token that may stand behind them.

        Raises:
            UnsupportedModelError: per="clip", and this is the grid of a picture.
        """
        views = tuple(Grid((view,)) for view in grid.views)
        if self.per == "view":
            return views
        if not grid.video:
            raise UnsupportedModelError(
                f"method {self.name!r} with per='clip' takes videos, whose frames share a budget, "
                "and this is a picture."
            )
        frames = tuple(view for view in grid.views if view.width)
        return Grid(frames, video=True), *views[len(frames) :]

    def budgets(self, grid: Grid) -> list[int]:
        """The number of tokens to keep of each of the `parts` of a picture with this grid.

        Raises:
            ValueError: `tokens` is more than the picture has, or less than its number of views; or
                `fixed_k` is False.
        """
        if not self.fixed_k:
            raise ValueError(f"{self.label}: how many tokens are kept depends on the picture.")
        sizes = [part.n_tokens for part in self.parts(grid)]
        if self.tokens is None:
            return [floor_share(size, self.share) for size in sizes]
        if not len(sizes) <= self.tokens <= sum(sizes):
            raise ValueError(
                f"tokens={self.tokens}: a picture of {sum(sizes)} visual tokens in {len(sizes)} "
                f"view(s) keeps {len(sizes)} to {sum(sizes)} of them."
            )
        return in_proportion(self.tokens, sizes)

    def budgets_of(self, image: EncodedImage) -> list[int]:
        """The same for a picture that is encoded; it differs where `fixed_k` is False."""
        return self.budgets(image.grid)

    def n_keep(self, grid: Grid) -> int:
        """The number of tokens to keep of a picture with this grid, before anything is encoded.

        Raises:
            ValueError: as `budgets`.
        """
        return sum(self.budgets(grid))

    def prune(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> PrunedInputs:
        """Encode, select and compact: `model.generate(**pruner.prune(model, inputs))`.

        Raises:
            UnsupportedModelError: the model's family has no adapter, or no attention to read.
            ValueError: no images, or images and placeholders that do not match.
        """
        self._refuse_weights()
        return self.compact(encode(model, inputs, [self]))

    def _refuse_weights(self) -> None:
        if self.weights != "none":
            raise ValueError(
                f"weights={self.weights!r}: shorter inputs cannot carry weights into the language "
                "model; use `with pruner(model):` around generate or forward."
            )

    @torch.no_grad()
    def compact(self, encoded: Encoded) -> PrunedInputs:
        """Make shorter inputs that hold the kept tokens only.

        Raises:
            ValueError: `encode` did not learn what this method needs, `score` gave values that are
                not finite, `select` did not give k sorted, distinct places, or the prompts are
                padded and have no attention_mask.
        """
        self._refuse_weights()
        ids, config = encoded.inputs["input_ids"], encoded.family.model.generation_config
        hidden = encoded.inputs.get("attention_mask") is None
        if hidden and not bool(inferred_mask(ids, config, {}).all()):
            raise ValueError(
                "attention_mask is missing, and input_ids hold padding: give the attention_mask "
                "that the processor returned."
            )
        return shortened(encoded, *pruned_images(self, encoded), self.numbering(encoded.family))

    def __call__(self, model: PreTrainedModel) -> AbstractContextManager[Session]:
        """`with pruner(model) as session:` prunes whatever goes through the model in the block.

        Raises:
            UnsupportedModelError: there is no adapter for the model; or weights="restore", and its
                layers do not share one rotary embedding.
            RuntimeError: another pruner is at work on this model.
            ValueError: there are weights, and an attention kernel whose logits take no bias.
        """
        return at_work(self.session(model))

    def session(self, model: PreTrainedModel) -> Session:
        """What this pruner does to one model; `with pruner(model)` makes it work."""
        return Before(self, model)

    def attach(self, model: PreTrainedModel) -> Handle:
        """Prune whatever goes through the model from here on, until `handle.remove()`.

        Returns:
            A handle; its `session` is what `with pruner(model) as session` gives.

        Raises:
            UnsupportedModelError, RuntimeError, ValueError: as in a `with` block.
        """
        return Handle(self.session(model))
