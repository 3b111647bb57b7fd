import sys; sys.path.insert(0,'/work/brief')
from nbedit import *
P='/work/wt/new/notebooks/09_choosing.ipynb'
C={}
C['3a4fbb7a']='''names = {"fopru": "FoPru", "divprune": "DivPrune", "dpp": "DPP"}
names["uniform"] = "uniform"
budgets = [0.5, 0.25, 0.1, 0.05]
half = answers[answers.method == "fopru-mass"].id.unique()
there = answers[answers.retention.isin([*budgets, 1.0])]
there = there[there.id.isin(half)]  # weights: every second picture
whole = full[full.id.isin(half)]'''
C['3a4fbb7b']='''parts = []
for how, switch in switches.items():
    ids = there[there.positions == switch.get("positions", "reindex")]
    weighted = "-mass" if "weights" in switch else ""
    for method, name in names.items():
        rows = ids[ids.method == f"{method}{weighted}"]
        parts.append(rows.assign(method=f"{name}{how}"))
settings = pd.concat([*parts, whole])'''
edit(P,C)
swap(P,[('full = answers[answers.method == "full"].drop_duplicates("id")','full = answers[answers.method == "full"].query("positions == \'reindex\'")'),
 ('''    "switch and method. Pocket model, 1,600 questions."''','''    "switch and method. Mean of three trainings, 800 questions."'''),
 ('''    "numbered anew, no weights; 200 questions of each kind. An empty cell: "
    "no budget that was asked is enough.",''','''    "numbered anew, no weights; 200 questions of each kind, the mean of "
    "three trainings. An empty cell: no budget that was asked is enough.",''')])
