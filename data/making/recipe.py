"""All that decides the pocket model's weights."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stage:
    """A stretch of training on one kind of loss."""

    learns: str
    """"tower": dense labels teach the tower, on crowded scenes; "captions": captions and the words
    of each picture teach everything; "answers": all weights learn from answers too."""
    steps: int
    batch: int
    lr: float
    warmup: int = 100
    """Steps up to the full learning rate, with a fresh optimizer; 0 goes on with what there is."""
    decay: float = 0.0
    """Share of the stage, at its end, over which the learning rate falls to zero."""
    few: float = 0.0
    """Share of scenes that have less on them than those of the benchmark."""

    def learning_rate(self, step: int) -> float:
        """At a step of this stage: warm-up, plateau, linear decay."""
        factor = 1.0
        if self.warmup:
            factor = min(factor, (step + 1) / self.warmup)
        if self.decay:
            factor = min(factor, (self.steps - step) / (self.decay * self.steps))
        return self.lr * factor


STAGES = (
    Stage("tower", 4000, 32, 2e-3, decay=0.35),
    Stage("answers", 2200, 16, 2e-3, few=0.7),
    Stage("answers", 2500, 32, 2e-3, warmup=0, few=0.15, decay=0.5),
    Stage("answers", 1200, 32, 2e-3, decay=0.8),
)


@dataclass(frozen=True)
class Recipe:
    """What is trained. No visual token is ever dropped: a pruned prompt is never trained on."""

    seed: int = 0
    stages: tuple[Stage, ...] = STAGES
    world: str = "second"
    """Whose scenes it sees: of `fopru.pocket.scenes.WORLDS`."""
    slots: tuple[str, ...] = ("name", "color")
    """What each patch is told of what lies under it: of `making.targets.SLOTS`. The other slots
    hold answers, such as both digits of a number on each of them."""
    dense: str = "output"
    """How a visual token says so: "output", as a word, through the decoder's own output head;
    "own", through a head of its own that is thrown away; "none", not at all: the tower learns from
    what a picture's caption says of it as a whole."""
    captions: bool = False
    """Whether "what is in the picture?" is one of the questions, its answer a list of all that is
    there. The list has no end of its own: it teaches to go on while something is left to name."""
    tower_weight: float = 0.2
    """Weight of the tower's own losses while answers are learned."""
    text_tokens: int = 208
    caption_tokens: int = 48
    width: int = 128
    layers: int = 8
    """Layers of the decoder."""
    compiled: bool = True
    """Whether torch compiles the step, which is a fifth faster on CPUs."""

    @property
    def schedule(self) -> list[tuple[Stage, int]]:
        """For each step its stage, and its place there."""
        return [(stage, i) for stage in self.stages for i in range(stage.steps)]

    def shortened(self, times: int) -> Recipe:
        """The same with so many times fewer steps."""
        stages = tuple(replace(stage, steps=stage.steps // times) for stage in self.stages)
        return replace(self, stages=stages)

    def without_dense_labels(self) -> Recipe:
        """The same with a tower that learns from captions only."""
        stages = tuple(
            replace(s, learns="captions") if s.learns == "tower" else s for s in self.stages
        )
        return replace(self, stages=stages, dense="none")


FIRST = Recipe(
    stages=(
        Stage("tower", 4000, 32, 2e-3, decay=0.35),
        Stage("answers", 1200, 16, 2e-3, few=0.7),
        Stage("answers", 2300, 32, 2e-3, warmup=0, few=0.15, decay=0.5),
    ),
    world="first",
    slots=("name", "color", "row", "column", "tens", "ones", "to"),
    dense="output",
    captions=True,
    layers=4,
)
"""What the weights in `data/pocket-first` were trained by."""
