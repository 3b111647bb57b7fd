import sys,json,os
nb,ids,expr=sys.argv[1],sys.argv[2].split(','),sys.argv[3]
import matplotlib; matplotlib.use('Agg')
import torch; torch.set_num_threads(1)
os.chdir('notebooks')
from IPython.core.interactiveshell import InteractiveShell
sh=InteractiveShell.instance()
from fopru import plots
import fopru.plots.style as st; plots.show=st.show=lambda f,c:None
for c in json.load(open(nb+'.ipynb'))['cells']:
    if c['id'] in ids:
        r=sh.run_cell(''.join(c['source']),silent=True)
exec(expr, sh.user_ns)
