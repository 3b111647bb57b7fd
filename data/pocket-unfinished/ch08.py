import sys; sys.path.insert(0,'/work/brief')
from nbedit import *
P='/work/wt/new/notebooks/08_accuracy_against_retention.ipynb'
C={}
C['a03']='''import fopru
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from fopru import plots
from fopru.evaluation import statistics, trainings
from fopru.evaluation.rows import needing

plots.theme()'''
C['a03b']='''sweep = fopru.pocket.results("pocketbench")
anew = sweep[sweep.positions == "reindex"]  # kept tokens numbered anew
tasks = list(sweep.task.unique())
READ = {"known": "choice", "said": "exact"}
print(f"{len(sweep):,} answers to {sweep.id.nunique():,} questions")
print(f"from {sweep.training.nunique()} trainings")'''
C['a06']='''# the rows in the file are what this machine says too
keys = ["id", "method", "retention", "positions", "seed"]
first = sweep[sweep.training == 0]
both = asked.merge(first, on=keys, suffixes=("", "_file"))
assert len(both) == len(asked)
assert (both.prediction == both.prediction_file).mean() > 0.98
assert (both.choice == both.choice_file).mean() > 0.98
assert (both.loglik - both.loglik_file).abs().median() < 1e-2'''
C['a08']='''NINE = [0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02, 1 / 256]
FOUR = [0.5, 0.25, 0.1, 0.05]  # all methods were asked at these
INSIDE = ["fastv", "pyramiddrop", "sparsevlm"]  # inside the language model
asked_of = set(anew.method) - set(INSIDE)
before = [name for name in fopru.METHODS if name in asked_of]
shown = ["fopru", "fopru-row", "cls", "divprune", "dpp"]
shown += ["random", "uniform", "oracle", "smaller"]
swept = anew[anew.retention.isin([*NINE, 0.0, 1.0])]'''
C['a09d']='''part = swept[swept.method.isin([*shown, "full", "guess"])]
cells = trainings.over_trainings(part, value="choice")
style = {"figsize": (6.2, 8.6), "sharex": True, "sharey": True}
fig, axes = plt.subplots(4, 2, **style)
for ax, task in zip(axes.flat, tasks, strict=True):
    plots.curves(cells[cells.task == task], ax)
    ax.set(title=task, xlabel="visual tokens kept", ylabel="known (%)")
    ax.set_xticks([1, 4, 16, 64, 256])
    ax.set_xlim(0.8, 320)
    ax.label_outer()
    handles, names = ax.get_legend_handles_labels()
    ax.get_legend().remove()
fig.legend(handles, names, loc="outside lower center", ncols=4)
plots.show(
    fig,
    "Figure 8.1. What the pocket model knows (forced choice) against the "
    "visual tokens kept, by kind of question: 200 questions on 100 or 200 "
    "pictures a panel, the mean of three trainings. Grey: all tokens (full) "
    "and the guesser. Bands: from the lowest to the highest training.",
)'''
C['f03']='''counts = swept[swept.retention == 0.1].groupby("id").method.nunique()
shared = counts.index[counts == counts.max()]  # every method was asked these
same = swept[swept.id.isin(shared)]
left = statistics.retained(same, blind="guess", value="choice")
left = left[left.method.isin([*before, *shown])]
left = left[left.retention == 0.1]
left = 100 * left.pivot(index="method", columns="task", values="retained")
left = left[[task for task in tasks if task != "knowledge"]]
left["mean of seven"] = left.mean(axis=1)
left = left.sort_values("mean of seven", ascending=False)
fig, ax = plt.subplots(figsize=(6.2, 6.2))
scale = {"cmap": "cividis", "vmin": 0, "vmax": 100}
bar = {"label": "left of what the picture gives (%)", "shrink": 0.6}
sns.heatmap(left, annot=True, fmt=".0f", ax=ax, cbar_kws=bar, **scale)
ax.grid(False)
ax.set(xlabel="", ylabel="")
ax.set_xticks(ax.get_xticks(), left.columns, rotation=40, ha="right")
plots.show(
    fig,
    "Figure 8.2. What is left of what the picture gives, in percent, known, "
    "at a tenth of the tokens: 0 is the guesser, 100 the pocket model with "
    "all tokens. About 100 questions a task, which all methods were asked; "
    "the mean of three trainings. Below 0 is worse than not looking.",
)'''
C['a13']='''some = same[same.method.isin([*before, "oracle", "full"])]
some = some[some.retention.isin([*FOUR, 1.0])]
area = {
    (name, training): statistics.area(part, column)
    for training, part in some.groupby("training")
    for name, column in READ.items()
}
area = {k: v.groupby("method").area.mean() for k, v in area.items()}
area = 100 * pd.DataFrame(area)
area = area.loc[area["known"].mean(axis=1).sort_values().index]'''
C['a13b']='''fig, ax = plt.subplots(figsize=(6.2, 5.4))
ax.hlines(area.index, area.min(axis=1), area.max(axis=1), plots.PALETTE[6])
for i, name in enumerate(READ):
    part = area[name].melt(ignore_index=False, value_name="area")
    style = {"color": plots.PALETTE[i], "mfc": "none" if i else None}
    ax.plot(part.area, part.index, "os"[i], label=name, **style)
ax.set(xlabel="area under accuracy over log tokens (%)")
ax.legend(loc="lower right")
plots.show(
    fig,
    "Figure 8.3. Mean accuracy of the pocket model over budgets from 16 to "
    "256 tokens, in the mean of eight tasks, on the questions that all "
    "methods were asked. One mark for each of three trainings and reading. "
    "Methods inside the language model come below.",
)'''
C['a15']='''def gap(one, other, value="choice", table=anew):
    """Points: the mean of three trainings, and the ends of all intervals."""
    table = table[table.method.isin([one[0], other[0]])]
    table = table[table.retention.isin([one[1], other[1]])]
    each = trainings.compared(table, one, other, value)
    return 100 * np.array(trainings.envelope(each))
'''
C['a15b']='''eight = ["fopru", "fopru-row", "cls", "vispruner", "divprune", "dpp"]
eight += ["uniform", "random"]
pairs = {
    (one, other): gap((one, 0.1), (other, 0.1))
    for one in eight
    for other in eight
    if one != other
}
lead = {pair: mean for pair, (mean, _, _) in pairs.items()}
lead = pd.Series(lead).unstack().loc[eight, eight]
agreed = {pair: low * high > 0 for pair, (_, low, high) in pairs.items()}
agreed = pd.Series(agreed).unstack().loc[eight, eight] == True  # noqa: E712
fig, ax = plt.subplots(figsize=(6.2, 4.6))
scale = {"cmap": "vlag", "center": 0, "vmin": -40, "vmax": 40}
bar = {"label": "points that the row knows more"}
sns.heatmap(
    lead, mask=~agreed, annot=True, fmt="+.0f", ax=ax, cbar_kws=bar, **scale
)
ax.grid(False)
ax.set_xticks(ax.get_xticks(), lead.columns, rotation=40, ha="right")
ax.set(xlabel="than the column", ylabel="")
plots.show(
    fig,
    "Figure 8.4. Known at a tenth of the tokens: how many points the row is "
    "ahead of the column, in the mean of three trainings (1,600 questions on "
    "500 pictures). Empty: not every training says that they differ, by more "
    "than other pictures would explain.",
)'''
C['g02b']='''others = ["random", "uniform", "cls", "vispruner", "divprune", "dpp"]
style = {"figsize": (6.2, 5.6), "sharex": True, "sharey": True}
fig, axes = plt.subplots(2, 2, **style)
columns = ["pair", "reading", "mean", "low", "high"]
for ax, r in zip(axes.flat, FOUR, strict=True):
    cells = [
        (f"minus {other}", name, *gap(("fopru", r), (other, r), value))
        for other in others
        for name, value in READ.items()
    ]
    plots.gaps(pd.DataFrame(cells, columns=columns), "pair", ax)
    ax.set(title=f"{100 * r:.0f} % of the tokens")
    ax.label_outer()
    handles, names = ax.get_legend_handles_labels()
    ax.get_legend().remove()
fig.legend(handles, names, loc="outside lower center", ncols=2)
plots.show(
    fig,
    "Figure 8.5. FoPru minus six others at equal tokens, in points: pocket "
    "model, 1,600 questions on 500 pictures, paired. Right of 0 FoPru is "
    "better. Marks: the mean of three trainings. Bars: from the lowest to "
    "the highest end of their 95 % intervals.",
)'''
C['e02']='''SAME = {  # tokens a layer: what FastV and PyramidDrop keep in the mean
    ("fastv", 0.25): 112,
    ("fastv", 0.1): 83,
    ("pyramiddrop", 0.15): 125,
    ("pyramiddrop", 0.05): 99,
}


def two(method, retention, table=anew):
    told = table[table.method == method]
    told = told[np.isclose(told.retention, retention)]
    shares = told.groupby("id")[["choice", "exact"]].mean().mean()
    return " / ".join(f"{100 * share:.1f}" for share in shares)


LINE = {"white-space": "nowrap"}


lines = []
for (inside, r), k in SAME.items():
    line = {"method": f"{inside}, {100 * r:.0f} %", "tokens": k}
    line["itself"] = two(inside, r)
    for other in ("random", "uniform", "fopru", "divprune"):
        line[other] = two(other, k / 256)
    lines.append(line)
pd.DataFrame(lines).style.hide().set_properties(
    **LINE, **{"font-size": "80%"}
).set_caption(
    "Table 8.3. Known / said, in percent of 1,600 questions, at equal mean "
    "tokens a layer, in the mean of three trainings."
)'''
C['a16b']='''for other in ("uniform", "random", "fopru-row"):
    for name in ("fopru", "divprune", "dpp"):
        assert agreed.loc[name, other] and lead.loc[name, other] > 0'''
C['e02c']='''for (inside, r), k in SAME.items():
    part = anew[(anew.method == inside) & (anew.retention == r)]
    assert abs(part.layer_weighted.mean() - k) < 1'''
C['a20']='''lines = []
for name in (*INSIDE, "cdpruner"):
    line = {"method": name}
    for r in (0.25, 0.1):
        paid = gap((name, r), (f"{name}-later", r))
        told = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*paid)
        line[f"{100 * r:.0f} % of the tokens"] = told
    lines.append(line)
pd.DataFrame(lines).style.hide().set_properties(**LINE).set_caption(
    "Table 8.4. What is known with tokens chosen by the question itself, "
    "minus with tokens chosen by another one: points, the mean of three "
    "trainings [the ends of all 95 % intervals]."
)'''
C['w4']='''methods = ["fopru", "cls", "divprune", "dpp", "tome", "random"]
COUNT = anew[anew.task == "counting"]
SEVEN = anew[anew.task != "counting"]
style = {"figsize": (6.2, 5.2), "sharex": "col", "sharey": True}
fig, axes = plt.subplots(2, 2, **style)
for row, r in zip(axes, (0.25, 0.1), strict=True):
    for ax, part in zip(row, (COUNT, SEVEN), strict=True):
        cells = [
            (m, name, *gap((f"{m}-mass", r), (m, r), value, part))
            for m in methods
            for name, value in READ.items()
        ]
        plots.gaps(pd.DataFrame(cells, columns=columns), "pair", ax)
        kind = "counting" if part is COUNT else "the other seven"
        ax.set(title=f"{kind}, {100 * r:.0f} %")
        ax.label_outer()
        handles, names = ax.get_legend_handles_labels()
        ax.get_legend().remove()
fig.legend(handles, names, loc="outside lower center", ncols=2)
plots.show(
    fig,
    "Figure 8.6. With weights minus without, in points, at two budgets: "
    "counting (100 questions on 100 pictures) and the other seven tasks (700 "
    "questions), three trainings. The columns have scales of their own. Bars: "
    "from the lowest to the highest end of the 95 % intervals.",
)'''
C['w5']='''names = {
    "divprune": "DivPrune",
    "divprune-mass": "with its masses",
    "divprune-constant": "with one weight for all",
    "divprune-dealt": "with masses dealt to the wrong tokens",
    "cluster-mean": "its clusters averaged",
    "cluster-mean-mass": "averaged, with masses",
    "tome": "ToMe",
    "tome-mass": "ToMe with its own sizes",
}
weighed = anew[anew.id.isin(anew[anew.method == "divprune-dealt"].id)]
lines = [
    {"method": told}
    | {f"{100 * r:.0f} %": two(name, r, weighed) for r in (0.25, 0.1)}
    for name, told in names.items()
]
pd.DataFrame(lines).style.hide().set_properties(**LINE).set_caption(
    "Table 8.5. DivPrune and ToMe with weights of several kinds: known / "
    "said, in percent of 800 questions, by share of tokens kept; the mean of "
    "three trainings."
)'''
C['v02']='''chosen = fopru.pocket.results("validation")
chosen = chosen[chosen.method != "full"]
keys = ["method", "positions"]
each = chosen.groupby([*keys, "training"]).choice.mean().unstack()
table = pd.DataFrame({"known": each.mean(axis=1), "lowest": each.min(axis=1)})
table["highest"] = each.max(axis=1)
tested = sweep[sweep.method.isin(chosen.method.unique())]
tested = tested[tested.id.isin(weighed.id.unique())]
tested = tested.groupby(["retention", *keys]).choice.mean()
for r in (0.25, 0.1):
    table[f"test, {100 * r:.0f} %"] = tested[r]
best = 100 * table.sort_values("known", ascending=False).head(8)
best = best.reset_index()
told = {"reindex": "new", "preserve": "original"}
best["positions"] = best.positions.map(told)
best.rename(columns={"positions": "ids"}).style.hide().format(
    precision=1
).set_caption(
    "Table 8.6. The rule's order on the validation split: known in the "
    "mean of 25 and 10 % and of three trainings, with the lowest and "
    "highest of these; and known on the test split, in percent."
)'''
C['g01']=None
edit(P,C,after=[('f02a','n01','markdown',"""**Questions that a smaller picture answers** say nothing about how tokens are chosen. [VTC-Bench](https://arxiv.org/abs/2510.07143) leaves them out, and keeps those that the full picture answers. Table 8.2 applies this filter to each budget and training.""",None),('n01','n02','code','''some = swept[swept.method.isin([*shown, "full"])]
some = some[some.retention.isin([*FOUR[1:], 1.0])]
hard = needing(some)
over = trainings.over_trainings(hard, by=(), value="choice")
over = over[~over.method.isin(["full", "smaller"])]
digits = "{:.0f} [{:.0f}, {:.0f}]".format
ends = (100 * over[["mean", "low", "high"]]).itertuples(index=False)
over["cell"] = [digits(*line) for line in ends]
wide = over.pivot(index="method", columns="retention", values="cell")
wide = wide.loc[shown[:-1], FOUR[1:]]
left = hard[hard.method == "full"].groupby(["retention", "training"])
left = left.id.nunique().groupby("retention").mean()
wide.loc["questions left"] = left.map("{:.0f}".format)
wide.columns = [f"{100 * r:.0f} %" for r in wide]
wide.rename_axis("method").reset_index().style.hide().set_caption(
    "Table 8.2. Known, in percent of the questions that the full picture "
    "answers and a smaller one of as many tokens does not, by share of "
    "tokens kept: the mean of three trainings [the lowest, the highest]."
)''',['hide-input'])])
nb=load(P)
def split(id, mark, new):
    k,c=next((k,c) for k,c in enumerate(nb['cells']) if c['id']==id)
    t=''.join(c['source']); i=t.index(mark); c['source']=lines(t[:i].rstrip())
    nb['cells'].insert(k+1,{'cell_type':'code','execution_count':None,'id':new,'metadata':{'tags':['hide-input']},'outputs':[],'source':lines(t[i:])})
split('a15b','fig, ax','a15c'); split('f03','fig, ax','f03b'); split('e02','LINE = {','e02b')
split('n02','over = trainings','n02b'); split('v02','tested = ','v02b'); split('a09d','fig, axes','a09e'); split('v02b','best = ','v02d'); split('n02b','wide = ','n02d'); split('g02b','style = ','g02c')
next(c for c in nb['cells'] if c['id']=='v02')['metadata']['tags']=['hide-input']
save(P,nb)
