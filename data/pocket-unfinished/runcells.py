"""runcells.py NOTEBOOK [ids to skip...]: run all code cells, print outputs/errs by id, keep going; figures to /tmp/figs"""
import sys, json, os, traceback, time
nbp=sys.argv[1]; skip=set(sys.argv[2:])
import matplotlib; matplotlib.use('Agg')
import torch; torch.set_num_threads(1)
from IPython.core.interactiveshell import InteractiveShell
import IPython.display as D
sh=InteractiveShell.instance()
sh.showtraceback=lambda *a,**k: print('   ', repr(sys.exc_info()[1])[:300])
os.makedirs('/tmp/figs',exist_ok=True)
os.chdir(os.path.dirname(os.path.abspath(nbp)))
from fopru import plots
cur=[None]
def show(fig,cap):
    fig.savefig(f'/tmp/figs/{cur[0]}.png',dpi=110,bbox_inches='tight',facecolor='white'); print('  CAPTION',cap)
plots.show=show; import fopru.plots.style as st; st.show=show
nb=json.load(open(os.path.basename(nbp)))
for c in nb['cells']:
    if c['cell_type']!='code' or c['id'] in skip: continue
    cur[0]=c['id']; t=time.time()
    r=sh.run_cell(''.join(c['source']),silent=False,store_history=False)
    val=r.result
    print(f"== {c['id']} {time.time()-t:.1f}s {'OK' if r.success else 'FAIL'}",flush=True)
    if val is not None:
        if hasattr(val,'data') and hasattr(val,'to_html') and hasattr(val,'caption'): print(val.data.to_string() if not hasattr(val,'_todo') else val.data.to_string()); print('  CAPTION',val.caption)
        else: print(str(val)[:2500])
