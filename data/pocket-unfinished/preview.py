"""preview.py TRAINING EVERY: ask PocketBench's parts of a small share of the pictures (development only)"""
import sys; sys.path.insert(0,'benchmarks')
import torch; torch.set_num_threads(1); torch.set_grad_enabled(False)
from pathlib import Path
from dataclasses import replace
import pocketbench as P
P.STORE=Path('/tmp/preview'); P.STORE.mkdir(exist_ok=True)
e=int(sys.argv[2])
P.PARTS={k:[replace(p,every=e) for p in v] for k,v in P.PARTS.items()}
for name in sys.argv[3:] or P.PARTS:
    import time; t=time.time(); r=P.ask(int(sys.argv[1]),name); print(name,len(r),round(time.time()-t),flush=True)
