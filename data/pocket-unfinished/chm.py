import sys; sys.path.insert(0,'/work/brief')
from nbedit import *
P='/work/wt/new/notebooks/model_and_benchmark.ipynb'
C={}
C['m22']='''sweep = results("pocketbench")
first = sweep[sweep.positions == "reindex"]  # kept tokens numbered anew
some = ["full", "fopru", "cls", "divprune", "random"]
some = first[first.method.isin(some)]
told = "training " + some.training.astype(str)
captions = results("pocket/half").query("model == 'captions'")
together = pd.concat([some.assign(model=told), captions])
together = together.drop(columns=["positions", "error"], errors="ignore")
recall = statistics.means(together, by=["model"], value="found")
recall = recall[np.isclose(recall.retention, 0.25)]
recall = recall.pivot(index="model", columns="method", values="mean")
recall = 100 * recall[["fopru", "cls", "divprune", "random"]]
recall = recall.loc[[*sorted(set(told)), "captions"]].reset_index()
recall.style.hide().format(precision=1).set_caption(
    "Table M.5. Share of the evidence that is kept in a quarter of the "
    "tokens, in percent, on three trainings; and on one of an earlier recipe "
    "and world, whose tower had no dense labels (captions)."
)'''
C['m23k']='''kept = recall.set_index("model")
dense = kept.drop("captions")
assert len(dense) == 3 and (dense.fopru > 2 * dense.random).all()
assert kept.fopru["captions"] < kept.random["captions"]'''
C['m24']='''lines = []
for other in ("cls", "divprune", "random"):
    for r in (0.25, 0.1):
        pair = ("fopru", r), (other, r)
        each = trainings.compared(some, *pair)
        line = {"difference": f"FoPru - {other}, {100 * r:.0f} %"}
        points = 100 * each.difference
        line |= {f"training {n}": d for n, d in points.items()}
        line["SD"] = points.std()
        mean, low, high = trainings.envelope(each)
        line["all intervals"] = f"{100 * low:.1f} to {100 * high:.1f}"
        lines.append(line)
moves = pd.DataFrame(lines).set_index("difference")
moves.reset_index().style.hide().format(precision=1).set_caption(
    "Table M.6. Differences in what is known, in points, over all tasks of "
    "PocketBench, on three trainings; their standard deviation (SD), and "
    "from the lowest to the highest end of their 95 % intervals."
)'''
C['m31']='''floors = ["full", "guess", "swapped", "grey", "none"]
blind = first[first.method.isin(floors)]
over = trainings.over_trainings
every = statistics.readings(blind, table=over)
numbers = (100 * every[["mean", "low", "high"]]).itertuples(index=False)
every["cell"] = [f"{m:.1f} ({a:.1f} to {b:.1f})" for m, a, b in numbers]
cells = every.pivot(index="method", columns="reading", values="cell")
cells = cells.loc[floors, ["known", "said", "malformed"]].reset_index()
cells.style.hide().set_caption(
    "Table M.8. The pocket model with all tokens, and four floors: percent "
    "of PocketBench's 1,600 questions, the mean of three trainings (the "
    "lowest to the highest of them)."
)'''
C['m32']='''each = statistics.readings(blind, by=["task"], table=statistics.means)
each = each[each.reading == "known"]
wide = 100 * each.pivot(index="task", columns="method", values="mean")
wide = wide.loc[list(scenes.TASKS), floors]
wide.reset_index().style.hide().format(precision=0).set_caption(
    "Table M.9. What is known, task by task: percent of 200 questions, the "
    "mean of three trainings."
)'''
C['m35f']='''quarter = first[np.isclose(first.retention, 0.25)]
names = [m for m in fopru.METHODS if m in set(quarter.method)]
quarter = quarter[quarter.method.isin(names)]
cells = statistics.means(quarter, value="choice")
known = 100 * cells.pivot(index="method", columns="task", values="mean")
known = known.loc[names, list(scenes.TASKS)]
figure, ax = plt.subplots(figsize=(7.6, 6.8))
bar = {"label": "known (% of questions)"}
style = {"annot": True, "fmt": ".0f", "cmap": "viridis", "cbar_kws": bar}
sns.heatmap(known, ax=ax, **style)
ax.set(xlabel="", ylabel="")
ax.tick_params("x", rotation=40)
plots.show(
    figure,
    "Figure M.4. What is known with a quarter of the visual tokens: percent "
    "of 200 questions, or of the 100 that every method was asked, by task "
    "and method; the mean of three trainings. Columns of one colour are "
    "tasks that tell methods apart badly.",
)'''
C['m36q']='''best = (known >= 95).sum()
assert len(known) == 25'''
edit(P,C,after=[('m40t','m40c','code','''beyond = results("beyond").query("split == 'combinations'")
both = {"test": first, "combinations": beyond}
lines = {}
for split, rows in both.items():
    rows = rows[rows.positions == "reindex"]
    for name, r in (("full", 1.0), ("fopru", 0.25), ("random", 0.25)):
        part = rows[(rows.method == name) & np.isclose(rows.retention, r)]
        lines[split, name] = 100 * part.groupby("task").choice.mean()
table = pd.DataFrame(lines).loc[list(scenes.TASKS)]
table.columns = [f"{split}: {name}" for split, name in table]
table.rename_axis("task").reset_index().style.hide().format(
    precision=0
).set_caption(
    "Table M.11. Known in percent, on familiar combinations (test) and on "
    "such as training never showed: all tokens, and a quarter of them by "
    "FoPru and at random; the mean of three trainings."
)''',['hide-input'])])
swap(P,[('cell = first[(first.method == "fopru") & np.isclose(first.retention, 0.1)]','one = first[first.training == 0]\ncell = one[(one.method == "fopru") & np.isclose(one.retention, 0.1)]'),('from fopru.evaluation import statistics\n','from fopru.evaluation import statistics, trainings\n')])
nb=load(P)
def split(id, mark, new):
    k,c=next((k,c) for k,c in enumerate(nb['cells']) if c['id']==id)
    t=''.join(c['source']); i=t.index(mark); c['source']=lines(t[:i].rstrip())
    nb['cells'].insert(k+1,{'cell_type':'code','execution_count':None,'id':new,'metadata':{'tags':['hide-input']},'outputs':[],'source':lines(t[i:])})
split('m24','moves = ','m24b'); split('m40c','table = ','m40d'); split('m22','told = ','m22b')
save(P,nb)
