import json,sys; sys.path.insert(0,'/work/brief')
from nbedit import lines, save, load
def md(i,s): return {'cell_type':'markdown','id':i,'metadata':{},'source':lines(s.strip('\n'))}
def code(i,s,*tags): return {'cell_type':'code','execution_count':None,'id':i,'metadata':({'tags':list(tags)} if tags else {}),'outputs':[],'source':lines(s.strip('\n'))}
H='hide-input'
meta=load('notebooks/12_real_eye.ipynb')
cells=[
md('a01','''# Answers on a real eye

**Objective.** See which findings of this book hold where a real vision tower sees the picture. By the end you can say what pruning costs a second model, what it makes that model claim that is not there, and which rankings of the pocket model it confirms.

*Reading time: 7 minutes. It runs in about 20 seconds on a laptop. You need: [a real eye](12_real_eye.ipynb) and [known and said](06_known_and_said.ipynb).*

[Chapter 12](12_real_eye.ipynb) looked at what the tower attends to. It ends with a warning: do not read "keeps the object" as "answers better". This page asks for answers.'''),
code('a02','''import importlib.util

if importlib.util.find_spec("fopru") is None:
    %pip install -q git+https://github.com/fopru/fopru''',H),
code('a03','''import fopru
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from fopru import plots
from fopru.evaluation import statistics, trainings

plots.theme()
EYE = "LLaVA on the tuned tower"
GREY = plots.PALETTE[6]''',H),
md('a04','''## The second model

The tower is that of chapter 12, DINOv2 ViT-S/14 as a wheel on PyPI holds it, and its caveat stands: its packager most likely tuned it for saliency. It is *frozen*. Only a projector and a decoder of four layers were trained on it, on 8,000 composites: cut-out photographs and printed words on photographs. So nobody told this tower where to look or what lies under a patch. (The projector was told, for its first steps and as a small part of its loss.) No token was ever dropped in training. There are three trainings, from three seeds.

The questions ask in a closed language for presence, counting, naming, place and a printed word. **Known** things are cut-outs that training has seen, in new scenes. **Unseen** things are other cut-outs, on other photographs, with words in other fonts. The state that is read is three blocks before the last, where the features are best; the block before it is scored.

The weights stay outside of this project, since some of the pictures may not be shipped. The answers are `data/results/real_eye/ask.parquet`.'''),
code('a05','''answers = fopru.pocket.results("real_eye/ask")
renumbered = answers[answers.positions == "reindex"]
plain = renumbered[renumbered.weights == "none"]
known_things = plain[plain.part == "known"]
answers.groupby("part").id.nunique().to_frame("questions")'''),
code('a06','''lone = plain[plain.method.isin(["full", "grey", "none"])]
reads = statistics.readings(
    lone, ["part", "task"], trainings.over_trainings
)
reads = reads[reads.reading != "malformed"]
ends = (100 * reads[["mean", "low", "high"]]).itertuples(index=False)
reads["cell"] = [f"{m:.0f} [{a:.0f}, {b:.0f}]" for m, a, b in ends]
names = {"full": "all tokens", "grey": "a grey picture", "none": "no picture"}
reads["what"] = reads.method.map(names) + ", " + reads.reading
shown = reads[(reads.method != "none") & (reads.reading == "known")]
said = reads[(reads.method == "full") & (reads.reading == "said")]
shown = pd.concat([shown, said]).pivot(
    index=["part", "task"], columns="what", values="cell"
)
shown.reset_index().rename_axis(columns=None).style.hide().set_caption(
    "Table R.1. What three trainings know and say with all tokens, and know "
    "of a grey picture: percent, in brackets the lowest and the highest "
    "training."
)''',H),
md('a07','''TODO goals.

## What pruning costs

<details class="predict"><summary>At a tenth of the tokens, does FoPru's choice let this model know more than a random choice?</summary>

TODO

</details>'''),
code('a08','''some = ["fopru", "fopru-row", "cls", "divprune", "random", "uniform"]
curves = known_things[known_things.method.isin([*some, "full", "grey"])]
both = statistics.readings(curves, table=trainings.over_trainings)
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), sharey=True)
titles = {"known": "known (forced choice)", "said": "said (exact match)"}
for ax, (reading, title) in zip(axes, titles.items(), strict=True):
    plots.curves(both[both.reading == reading], ax)
    ax.set(title=title, ylabel="share of questions (%)")
axes[0].get_legend().remove()
asked = known_things.id.nunique()
plots.show(
    fig,
    "Figure R.1. Share of questions that the model knows (left) and says "
    f"(right), against the visual tokens kept: {asked} questions on known "
    f"things, {EYE}. Lines: means of three trainings; bands: from the lowest "
    "to the highest. Grey lines: all tokens, a grey picture.",
)''',H),
md('a09','''TODO

## Yes to things that are not there

Half of the presence questions ask for a thing that is not in the picture. A model that sees only objects, and none of the empty ground between them, may come to expect what it is asked for. Figure R.2 counts right answers to both kinds apart.

<details class="predict"><summary>Which tokens make the model say yes to what is not there most often: those of FoPru, or random ones?</summary>

TODO

</details>'''),
code('a10','''budget = 0.25
presence = known_things[known_things.task == "presence"]
quarter = presence[np.isclose(presence.retention, budget)]
cells = trainings.over_trainings(quarter, ["variant"], "choice")
whole = presence[presence.method == "full"]
level = trainings.over_trainings(whole, ["variant"], "choice")
level = 100 * level.set_index("variant")["mean"]
order = cells[cells.variant == "no"].sort_values("mean").method.tolist()''',H),
code('a10f','''fig, ax = plt.subplots(figsize=(6.6, 5.6))
for variant, marker in {"no": "o", "yes": "D"}.items():
    part = cells[cells.variant == variant].set_index("method").loc[order]
    y = np.arange(len(order)) + (0.15 if variant == "yes" else -0.15)
    colors = [plots.look(name)[0] for name in order]
    ax.hlines(y, 100 * part.low, 100 * part.high, colors, lw=1.5)
    style = {"marker": marker, "s": 24, "zorder": 3}
    ax.scatter(100 * part["mean"], y, c=colors, **style)
    ax.axvline(level[variant], color=GREY, ls="-" if variant == "no" else "--")
    ax.scatter([], [], c=GREY, marker=marker, label=f'right answer "{variant}"')
ax.set(yticks=range(len(order)), yticklabels=order, xlabel="known (%)")
ax.legend(loc="lower left", fontsize="small")
plots.show(
    fig,
    f"Figure R.2. Presence questions with a quarter of the tokens, by method "
    f"and right answer; {EYE}. Points: means of three trainings; bars: from "
    "the lowest to the highest. The grey lines are all tokens (solid: no; "
    "dashed: yes).",
)''',H),
md('a11','''TODO

## What mends it

Two things may help. A kept token can be given the [weight](../book/glossary.md) of those it stands for. And a method can keep some of the background.'''),
code('a12','''kinds = ["fopru", "cls", "divprune", "random", "uniform"]
presence = answers[(answers.part == "known") & (answers.task == "presence")]
absent = presence[presence.variant.eq("no") & presence.method.isin(kinds)]
absent = absent[np.isclose(absent.retention, budget)]
ways = pd.concat(
    trainings.over_trainings(part, ["weights"], "choice").assign(ids=ids)
    for ids, part in absent.groupby("positions")
)
ways["cell"] = 100 * ways["mean"]
ways["how"] = ways.weights.map(
    {"none": "no weights", "mass": "mass", "restore": "restore"}
)
ids = {"reindex": "new ids", "preserve": "own ids"}
ways["how"] += ", " + ways.ids.map(ids)
table = ways.pivot(index="method", columns="how", values="cell").loc[kinds]
heads = [f"{w}, {i}" for i in ids.values() for w in ("no weights", "mass", "restore")]
table = table[heads].reset_index().rename_axis(columns=None)
table.style.hide().format(precision=0).set_caption(
    "Table R.2. Right answers (known, %) to presence questions about things "
    "that are not there, with a quarter of the tokens: means of three "
    f"trainings, {EYE}."
)''',H),
code('a13','''every = known_things[(known_things.task == "counting")]
every = every[np.isclose(every.retention, budget) & every.evidence.gt(0)]
on_things = every.found * every.evidence / every.kept
ground = (1 - on_things).groupby(every.method).mean()
right = cells[cells.variant == "no"].set_index("method")["mean"]
fig, ax = plt.subplots(figsize=(6, 3.8))
for name in right.index.intersection(ground.index):
    color, marker = plots.look(name)
    x, y = 100 * ground[name], 100 * right[name]
    ax.scatter(x, y, color=color, marker=marker)
    ax.annotate(name, (x, y), (4, 3), textcoords="offset points", fontsize=7)
ax.set(xlabel="kept tokens that lie on background (%)", ylabel='known, "no" (%)')
plots.show(
    fig,
    "Figure R.3. Right answers to questions for things that are not there, "
    "against the share of background among the tokens that a method keeps; a "
    f"quarter of the tokens, means of three trainings, {EYE}.",
)''',H),
md('a14','''TODO

## Which claims hold twice

Table R.3 asks the pocket model and this one the same, over three trainings each. A claim *holds* on a model if one side is ahead in every training by more than other pictures would explain (no interval reaches zero). Everything else is *open*.'''),
code('a15','''def labelled(rows):
    """Methods with their weights in the name, of renumbered prompts."""
    rows = rows[rows.positions == "reindex"]
    how = rows.weights.where(rows.weights != "none", "")
    name = rows.method + ("-" + how).where(how != "", "")
    return rows.assign(method=name)


eye = labelled(answers[answers.part == "known"])
pocket = fopru.pocket.results("pocketbench")
pocket = pocket[pocket.positions == "reindex"]
CLAIMS = {
    "FoPru keeps more of the evidence than random": ("fopru", "random", 0.25, "found"),
    "FoPru knows more than random": ("fopru", "random", 0.25, "choice"),
    "the same at a tenth": ("fopru", "random", 0.1, "choice"),
    "FoPru knows more than uniform": ("fopru", "uniform", 0.25, "choice"),
    "CLS knows more than FoPru": ("cls", "fopru", 0.25, "choice"),
    "DivPrune knows more than FoPru": ("divprune", "fopru", 0.25, "choice"),
    "the same at a tenth ": ("divprune", "fopru", 0.1, "choice"),
    "rank knows more than row": ("fopru", "fopru-row", 0.25, "choice"),
    "mass lets DivPrune know more": ("divprune-mass", "divprune", 0.25, "choice"),
    "mass lets FoPru know more": ("fopru-mass", "fopru", 0.25, "choice"),
}''',H),
code('a16','''def lead(rows, one, other, retention, value):
    """(text, verdict) of one method's lead, in points."""
    pair = (one, retention), (other, retention)
    found = 100 * trainings.compared(rows, *pair, value)
    gap = found.difference
    text = f"{gap.mean():+.1f} [{gap.min():+.1f}, {gap.max():+.1f}]"
    if (found.low > 0).all():
        return text, "holds"
    return text, "turned round" if (found.high < 0).all() else "open"


lines = []
for claim, (one, other, retention, value) in CLAIMS.items():
    one_model = lead(pocket, one, other, retention, value)
    other_model = lead(eye, one, other, retention, value)
    lines.append((f"{claim} ({retention:.0%})", *one_model, *other_model))
heads = ["claim", "pocket", "there", "real eye", "there "]
claims = pd.DataFrame(lines, columns=heads)
claims["verdict"] = np.where(
    claims.there != claims["there "],
    "not the same on both",
    claims.there.map({"open": "open", "holds": "holds twice", "turned round": "wrong twice"}),
)
claims.style.hide().set_caption(
    "Table R.3. Claims of this book on two models: the lead in points, mean "
    "of three trainings (lowest, highest), and whether it holds there."
)''',H),
md('a17','''TODO

## What would change my mind

- A tower that nobody tuned (`--tower facebook/dinov2-small`, which needs the internet), or CLIP's.
- A real language model behind this tower. `benchmarks/real_eye train --gemma` puts a frozen Gemma 3 270M there. It has run for a few steps only.
- Questions that people asked about photographs that people took.

## Exercises

1. Take *naming* and *place* apart from Figure R.1. Which of them needs the place of a thing, and which only the thing?
2. The table has `unseen` things too. Does Table R.3 change?
3. Which method keeps most background, and does that help it with *yes*?
'''),
]
nb={'cells':cells,'metadata':meta['metadata'],'nbformat':meta['nbformat'],'nbformat_minor':meta['nbformat_minor']}
save('notebooks/real_eye_answers.ipynb',nb)
