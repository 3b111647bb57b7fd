import sys; sys.path.insert(0,'benchmarks')
import torch; torch.set_num_threads(1)
import fopru
from real_eye import training, world, commands
seed=int(sys.argv[1])
model,proc=training.load(commands.eye(None), commands.learned(None,seed,False), training.OURS)
for part,seeds in (("known",range(900_000,900_040)),("unseen",range(910_000,910_030))):
    ex=world.examples(part,seeds)
    rows=fopru.evaluate(model,proc,ex,["fopru","random"],[0.25],seeds=(0,))
    print(part,len(ex)); print((100*rows.groupby(["method","task"])[["choice","exact","formed"]].mean()).round(0).unstack(0).to_string())
    print((100*rows.groupby("method")[["choice","exact"]].mean()).round(1))
