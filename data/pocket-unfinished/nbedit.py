"""edit(path, {id: source | None}, after=[(id, newid, kind, source, tags)]); swap(path, [(old, new)...])"""
import json
def load(p): return json.load(open(p))
def save(p, nb): open(p,'w').write(json.dumps(nb, indent=1, ensure_ascii=False)+"\n")
def lines(s): return s.splitlines(keepends=True)
def edit(path, cells=None, after=()):
    nb=load(path); cells=dict(cells or {})
    out=[]
    for c in nb['cells']:
        if c['id'] in cells:
            s=cells.pop(c['id'])
            if s is None: continue
            c['source']=lines(s.strip('\n'))
        out.append(c)
    assert not cells, cells.keys()
    for where,new,kind,src,tags in after:
        i=next(i for i,c in enumerate(out) if c['id']==where)
        c={'cell_type':kind,'id':new,'metadata':{'tags':tags} if tags else {},'source':lines(src.strip('\n'))}
        if kind=='code': c={'cell_type':kind,'execution_count':None,'id':new,'metadata':c['metadata'],'outputs':[],'source':c['source']}
        out.insert(i+1,c)
    nb['cells']=out; save(path,nb)
def swap(path, pairs):
    nb=load(path); left=dict(pairs)
    for c in nb['cells']:
        s=''.join(c['source'])
        for a,b in pairs:
            if a not in s and s.endswith(a.rstrip('\n')): s+='\n'; s=s.replace(a,b).rstrip('\n'); left.pop(a,None)
            elif a in s: s=s.replace(a,b); left.pop(a,None)
        c['source']=lines(s)
    assert not left, list(left)
    save(path,nb)
