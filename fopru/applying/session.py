"""`with pruner(model) as session:` whatever goes through the model is pruned, and no trace is left.

Three methods of the model, on this instance and for the time of the block, go through the session:
`generate`, `forward` (so also a call of the model) and `prepare_inputs_for_generation`. What a
session knows of a prompt is kept with the prompt's KV cache (`fopru.applying.conversation`), and
what one forward pass needs only for that pass: blocks may be used from several threads.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from fopru.attention import implementation
from fopru.encoding import Encoded
from fopru.families import Family
from fopru.pruned import PER_TOKEN, PrunedImage, PrunedInputs

_ACTIVE: WeakSet[nn.Module] = WeakSet()
_GENERATING: ContextVar[tuple[Session, Any] | None] = ContextVar("fopru_generating", default=None)


During = Callable[[str, Callable[[], Any]], Any]
"""How the stages of pruning are run: called with a stage's name and what is to be done in it, it
returns what that returns. `fopru.measure` puts a clock there."""


def at_once(stage: str, call: Callable[[], Any]) -> Any:
    """Do what a stage consists of, and nothing else."""
    return call()


class Session:
    """What a pruner does to one model: the same for every kind of pruner."""

    shortens: ClassVar[bool] = False
    """Whether the prompt that the language model gets is shorter than the caller's."""

    def __init__(self, pruner: Any, model: PreTrainedModel):
        self.pruner, self.model = pruner, model
        self.family = Family.of(model)
        self.family.check(pruner.needs)
        self.last: PrunedInputs | None = None
        """The inputs that the last prompt with pictures was turned into; None before the first.
        With several threads, those of any of them."""

    @property
    def images(self) -> tuple[PrunedImage, ...]:
        """What was kept of each picture of the last prompt, in the order of the prompt."""
        return () if self.last is None else self.last.images

    @property
    def kept(self) -> list[Tensor]:
        """The visual tokens that were kept of each row of the last prompt, one (k,) int64 tensor of
        indices among the row's own for each. Inside the language model these are the tokens that
        its last layer sees."""
        raise NotImplementedError

    @property
    def layer_weighted(self) -> list[float]:
        """The mean over the language model's layers of the visual tokens that each sees, one number
        per row of the last prompt."""
        return [float(len(tokens)) for tokens in self.kept]

    def arguments(self, encoded: Encoded, during: During = at_once) -> PrunedInputs:
        """Return what to call the model with, inside the block, for pictures that are encoded
        already.

        Args:
            encoded: What `fopru.encode` returned for this pruner.
            during: Runs each stage ("selection", "compaction"); see `During`.
        """
        raise NotImplementedError

    def changes(self) -> AbstractContextManager[None]:
        """Return a block in which the model is changed in whatever else the method needs."""
        return nullcontext()

    def clean(self, model: PreTrainedModel) -> None:
        """Take out of a copy of the model what `changes` did to the model itself."""
        family = Family.of(model)
        parts = [part for part in (family.tower, family.decoder) if hasattr(part, "config")]
        for part in parts:  # a model without a tower has an embedder there
            part.config._attn_implementation = implementation(part.config)

    def generate(self, generate: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Handle a call of the model's `generate`, its arguments by name."""
        raise NotImplementedError

    def forward(self, forward: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Handle a call of the model's `forward`, its arguments by name."""
        raise NotImplementedError

    def prepare(self, prepare: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Handle a call of the model's `prepare_inputs_for_generation`, its arguments by name."""
        return prepare(**kwargs)

    @property
    def generating(self) -> bool:
        """Whether the call at hand is one of the session's own `generate`, in this thread."""
        at_hand = _GENERATING.get()
        return at_hand is not None and at_hand[0] is self

    @property
    def conversation(self) -> Any:
        """What is known of the prompt that the session's own `generate` was called with, or
        None."""
        return _GENERATING.get()[1] if self.generating else None

    @contextmanager
    def in_generate(self, conversation: Any) -> Iterator[None]:
        """Within the block, calls of the model are those of the session's own `generate`."""
        token = _GENERATING.set((self, conversation))
        try:
            yield
        finally:
            _GENERATING.reset(token)

    def names(self) -> list[str]:
        """Return the names of the arguments of a call that pruning reads."""
        readers = self._readers
        pixels = (name for reader in readers for name in (*reader.pixels, *reader.options))
        return [*PER_TOKEN, *pixels, *self.family.also]

    def shows(self, kwargs: Mapping[str, Any]) -> bool:
        """Return whether the arguments of a call hold pictures or videos.

        Raises:
            ValueError: they do, and there are no token ids that say where these stand.
        """
        shown = any(kwargs.get(reader.pixels[0]) is not None for reader in self._readers)
        if shown and (kwargs.get("input_ids") is None or kwargs.get("inputs_embeds") is not None):
            raise ValueError(
                "pictures were given with inputs_embeds or without input_ids: pruning finds their "
                "places by the placeholders in input_ids, so give these and no inputs_embeds."
            )
        return shown

    @staticmethod
    def misplaced() -> ValueError:
        """Return the error for pictures that come after the beginning of a conversation."""
        return ValueError(
            "a picture was given together with a KV cache (past_key_values) that already holds "
            "tokens: pictures belong to the beginning. Call the model again without the cache, "
            "with the whole conversation."
        )

    def visual(self, ids: Tensor) -> Tensor:
        """Return where the placeholders of pictures and videos stand: (B, L) bool."""
        places = torch.zeros_like(ids, dtype=torch.bool)
        for reader in self._readers:
            places |= ids == reader.image_token_id
        return places

    @functools.cached_property
    def _readers(self) -> list[Family]:
        video = self.family.video
        return [self.family] if video is None else [self.family, video(self.model)]


@contextmanager
def at_work(session: Session) -> Iterator[Session]:
    """Let a session act on its model within the block.

    Raises:
        RuntimeError: another one does so already.
    """
    model = session.model
    if model in _ACTIVE:
        raise RuntimeError(
            f"another pruner is at work on this {type(model).__name__}: leave its `with` block, or "
            "call `remove()` of its handle."
        )
    _ACTIVE.add(model)
    try:
        with session.changes(), _replaced(session):
            yield session
    finally:
        _ACTIVE.discard(model)


class Handle:
    """A pruner that is attached to a model, outside of any `with` block; `Pruner.attach` gives one.

    Args:
        session: What the pruner does to the model.
    """

    def __init__(self, session: Session):
        self.session = session
        """The session, which says what was kept since, as `with pruner(model) as session` does."""
        self._stack = ExitStack()
        self._stack.enter_context(at_work(session))

    def remove(self) -> None:
        """Take the pruner off the model, which is then as it was. A second call does nothing."""
        self._stack.close()


@contextmanager
def _replaced(session: Session) -> Iterator[None]:
    """Replace methods of the model, on this instance only, by those of the session within the
    block."""
    model = session.model
    own = {
        name: model.__dict__[name]  # someone else's wrapper, as accelerate has one
        for name in ("generate", "forward", "prepare_inputs_for_generation", "__deepcopy__")
        if name in model.__dict__
    }

    def copied(memo: dict[int, Any]) -> PreTrainedModel:
        """A copy that is made within the block is a model of its own, and not pruned."""
        plain = copy.copy(model)
        plain.__dict__ = {n: v for n, v in model.__dict__.items() if n not in replaced} | own
        result = copy.deepcopy(plain, memo)
        session.clean(result)
        return result

    replaced = {
        "generate": _through(session.generate, model.generate),
        "forward": _through(session.forward, model.forward),
        "prepare_inputs_for_generation": _through(
            session.prepare, model.prepare_inputs_for_generation
        ),
        "__deepcopy__": copied,
    }
    for name, method in replaced.items():
        setattr(model, name, method)
    try:
        yield
    finally:
        for name in replaced:
            model.__dict__.pop(name, None)
        for name, method in own.items():
            setattr(model, name, method)


def _through(act: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method as it goes through the session, positional arguments by their names."""
    names = list(inspect.signature(method).parameters)

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) > len(names):
            return method(*args, **kwargs)  # which says what is wrong
        named = dict(zip(names, args, strict=False)) | kwargs
        if (ids := named.pop("inputs", None)) is not None:  # what `generate` may call them
            named["input_ids"] = ids
        return act(method, named)

    return torch.compiler.disable(call, recursive=False)


def option(name: str, config: GenerationConfig, kwargs: Mapping[str, Any]) -> Any:
    """Return an option of `generate`, given by name or in its config; None where it is in
    neither."""
    return kwargs[name] if kwargs.get(name) is not None else getattr(config, name, None)


def inferred_mask(ids: Tensor, config: GenerationConfig, kwargs: Mapping[str, Any]) -> Tensor:
    """Return the attention mask (B, L) that `generate` makes where it gets none: 0 for padding,
    unless padding also ends a sequence."""
    pad, ends = (option(f"{name}_token_id", config, kwargs) for name in ("pad", "eos"))
    ends = ends if isinstance(ends, list | tuple) else [ends]
    if pad is None or pad in ends or not bool((ids == pad).any()):
        return torch.ones_like(ids)
    return (ids != pad).to(ids.dtype)
