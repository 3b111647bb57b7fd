import sys; sys.path.insert(0,'/work/brief')
from nbedit import *
P='/work/wt/new/notebooks/11_other_methods.ipynb'
C={}
C['c03b']='''from fopru import plots
from fopru.evaluation import statistics, trainings

plots.theme()
sweep = fopru.pocket.results("pocketbench")
anew = sweep[sweep.positions == "reindex"]  # kept tokens numbered anew
shared = anew[anew.method == "scope"].id.unique()  # all methods have these
same = anew[anew.id.isin(shared)]'''
C['c28c']='''budgets = [0.5, 0.25, 0.1]
rows = same[same.method.isin(names) & same.retention.isin(budgets)]
wide = statistics.readings(rows, table=statistics.means)
wide["budget"] = (100 * wide.retention).map("{:.0f} %".format)
wide = 100 * wide.pivot_table("mean", "method", ["reading", "budget"])
each = trainings.over_trainings(rows, by=(), value="choice")
each = 100 * each.set_index(["retention", "method"])[["mean", "low", "high"]]
fig, axes = plt.subplots(1, 2, figsize=(7.4, 5.8), sharey=True)
order = each.loc[0.1]["mean"].loc[list(before)].sort_values().index
for ax, r in zip(axes, (0.25, 0.1), strict=True):
    for place, name in enumerate(order):
        color, marker = plots.look(name)
        at = each.loc[r, name]
        ax.hlines(place, at.low, at.high, color=color)
        ax.plot(at["mean"], place, marker, color=color, ms=6)
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel="known (%)", title=f"{100 * r:.0f} % of the tokens")
plots.show(
    fig,
    "Figure 11.3. What the pocket model knows with a quarter and with a "
    f"tenth of the tokens, for the {len(before)} methods that choose before "
    "the language model: 800 questions that all were asked. Marks: the mean "
    "of three trainings; lines: from the lowest to the highest.",
)'''
C['c28']='''quarter = rows[rows.retention == 0.25]
table = pd.DataFrame({"kind": {n: k for k, row in ROWS.items() for n in row}})
for r, budget in ((0.25, "25 %"), (0.1, "10 %")):
    ends = "{:.1f} [{:.1f}, {:.1f}]".format
    told = [ends(*line) for line in each.loc[r].itertuples(index=False)]
    table[f"known, {budget}"] = pd.Series(told, each.loc[r].index)
    table[f"said, {budget}"] = wide["said", budget].map("{:.1f}".format)
layers = quarter.groupby("method").layer_weighted.mean()
table["tokens a layer"] = layers.round(0).astype(int)'''
C['c30c']='''def lead(one, other, r, value="choice"):
    part = same[same.method.isin([one, other]) & (same.retention == r)]
    return trainings.compared(part, (one, r), (other, r), value)


for name in ("fopru", "divprune", "mmtok"):
    assert trainings.ranks(lead(name, "random", 0.1))'''
C['h02']='''select = ["cls", "vispruner", "fopru", "cdpruner", "dpp", "divprune"]
select += ["dart", "fopru-row", "uniform", "random"]
half = fopru.pocket.results("pocket/half").query("model == 'captions'")
told = "training " + same.training.astype(str)
recall = pd.concat([same.assign(model=told), half])
recall = recall[recall.method.isin(select) & (recall.retention == 0.25)]
recall = 100 * recall.groupby(["method", "model"]).found.mean().unstack()
order = [*sorted(set(told)), "captions"]
recall = recall.loc[select, order]
fig, ax = plt.subplots(figsize=(5.4, 4))
style = {"annot": True, "fmt": ".0f", "cmap": "cividis", "vmin": 0}
bar = {"label": "share of the evidence kept (%)"}
sns.heatmap(recall, vmax=100, ax=ax, cbar_kws=bar, **style)
ax.grid(False)
ax.set(xlabel="", ylabel="")
plots.show(
    fig,
    "Figure 11.4. Share of the evidence that a quarter of the tokens holds: "
    "three trainings, and a tower of the first recipe that saw captions "
    "only. Test questions with evidence (captions: of the first world).",
)'''
C['h02c']='''assert len(order) == 4
assert recall.loc["fopru", "captions"] < recall.loc["random", "captions"]
assert recall.loc["divprune", "captions"] > 70'''
C['a10hal2']='''asked = fopru.pocket.results("beyond")
asked = asked[asked.split.eq("hallucination") & asked.positions.eq("reindex")]
absent = {"likely": "absent, likely", "random": "absent, any"}
asked = asked.assign(kind=asked.variant.map(absent))
there = anew[(anew.task == "presence") & (anew.answer == "yes")]
part = pd.concat([there.assign(kind="there"), asked])
some = ["full", "fopru", "fopru-row", "cls", "vispruner", "divprune", "dpp"]
some += ["tome", "uniform", "random"]
part = part[part.method.isin(some) & part.retention.isin([0.25, 0.1, 1.0])]
part = part.assign(wrong=100 * (1 - part.choice.astype(float)))'''
C['a10hal2c']='''at = share.loc["random"]
assert at["there, 10 %"] > at["absent, any, 10 %"]'''
C['a10comp2']='''some = ["fopru", "divprune", "cells", "mmr", "halves"]
part = anew[anew.method.isin(some) & anew.retention.isin([0.25, 0.1])]
cells = statistics.readings(part, table=statistics.means)
cells["budget"] = (100 * cells.retention).map(", {:.0f} %".format)
cells["budget"] = cells.reading + cells.budget
joint = 100 * cells.pivot_table("mean", "method", "budget", sort=False)
joint.loc[some].reset_index().style.hide().format(precision=1).set_caption(
    "Table 11.4. FoPru, DivPrune and three selectors on FoPru's score, in "
    "percent of 1,600 questions, by share of tokens kept; the mean of three "
    "trainings."
)'''
edit(P,C,after=[('a10hal2','a10hal2t','code','''part["budget"] = (100 * part.retention).map("{:.0f} %".format)
share = part.pivot_table("wrong", "method", ["kind", "budget"], "mean")
share = share.loc[some, ["there", *absent.values()]]
share.columns = [f"{kind}, {budget}" for kind, budget in share.columns]
share.reset_index().style.hide().format(precision=0, na_rep="").set_caption(
    "Table 11.3. Presence known wrongly, in percent of the questions for "
    "things that are there (test split) and for likely and for any things "
    "that are not (hallucination split); the mean of three trainings."
)''',['hide-input'])])
swap(P,[('same = fopru.encode(model, inputs, pair)','both = fopru.encode(model, inputs, pair)'),('(p.compact(same).images[0].kept for p in pair)','(p.compact(both).images[0].kept for p in pair)')])
