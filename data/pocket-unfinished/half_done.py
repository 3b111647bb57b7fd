"""half_done.py N OUT: the weights of checkpoint N as a folder (development only)"""
import sys,os,torch; sys.path.insert(0,'data'); torch.set_num_threads(1)
from pathlib import Path
from making import train as T, build
from making.recipe import Recipe
from making.targets import Batches
from fopru.pocket import scenes
n=int(sys.argv[1]); out=Path(sys.argv[2])
s=torch.load(os.path.expanduser(f'~/.cache/fopru/pocket-full/check{n}/checkpoint.pt'),map_location='cpu',weights_only=True)
r=Recipe(seed=n); p=build.processor(scenes.WORDS); m=build.model(build.config(p,width=r.width,text_layers=r.layers),n)
st=T.Student(m,p,Batches(p,r).prompt_ids[0],r)
T._copy(list(st.parameters()), s['masters']); m.eval(); build.save(m,p,out); print(s['step'],out)
