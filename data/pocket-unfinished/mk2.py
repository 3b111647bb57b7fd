"""trial tables in /work/wt/new from what is answered so far"""
import sys,os; os.environ['OMP_NUM_THREADS']='1'
sys.path[:0]=['/tmp','/work/wt/new/benchmarks','/work/wt/new']
from load import load
import pandas as pd, fopru, pocketbench as pb
from fopru.evaluation.settings import label
qs={s:fopru.pocket.benchmark(s) for s in('test','validation','combinations','hallucination')}
split={e.id:s for s,q in qs.items() for e in q}
def want():
    for name,parts in pb.PARTS.items():
        for p in parts:
            c=pb.chosen(qs[p.split],p.one_in); ids=[e.id for e in qs[p.split] if e.scene['image_id'] in c and e.task in p.tasks]
            labels=list(p.methods) if isinstance(p.methods,dict) else [m if isinstance(m,str) else label(m) for m in p.methods]
            for pos in [p.positions]:
                for l in labels:
                    for r in p.retentions:
                        for s in p.seeds:
                            for i in ids: yield i,l,round(r,5),pos,s
                for l in ['full',*p.blind]:
                    for i in ids: yield i,l,0.0 if l=='none' else 1.0,pos,0
w=pd.DataFrame(sorted(set(want())),columns=['id','method','r','positions','seed'])
print(len(w),'wanted')
parts=[]
for n,f in enumerate(sys.argv[1:]):
    d=load(f).drop_duplicates(['id','method','retention','positions','seed'])
    d['r']=d.retention.round(5)
    if n==0:
        print(d[d.method.isin(['full','none','grey'])].groupby(['method','r','positions'],dropna=False).size())
        print([m for m in w.method.unique() if m not in set(d.method)],[m for m in d.method.unique() if m not in set(w.method)])
    q=d.merge(w,on=['id','method','r','positions','seed'])
    print(f,len(d),'->',len(q)); parts.append(q.drop(columns='r').assign(training=n))
d=pd.concat(parts,ignore_index=True); d['split']=d.id.map(split)
for c in ('modality','budget','attention','error'):
    if c not in d: d[c]=None
test=d[d.split=='test']
examples={e.id:e for e in qs['test']}
test=pd.concat([test,pb.guesser(test,examples,1500)],ignore_index=True)
R='/work/wt/new/data/results/'
pb.small(test).to_parquet(R+'pocketbench.parquet'); print('test',len(test))
for s,n in (('validation',['validation']),('beyond',['combinations','hallucination'])):
    t=d[d.split.isin(n)]
    if len(t): pb.small(t).to_parquet(R+s+'.parquet'); print(s,len(t))
