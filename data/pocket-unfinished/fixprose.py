"""PYTHONPATH=ROOT/benchmarks python fixprose.py ROOT [claims names...]: write today's numbers into the sentences of
benchmarks/claims, and say old -> new. Text is not judged: read every printed line."""
import importlib.util, json, re, sys
from pathlib import Path
root=Path(sys.argv[1]); sys.path.insert(0,str(root/'benchmarks')); sys.path.insert(0,str(root))
import prose; prose.ROOT=root
def shown(printed,value):
    plain=printed.replace(',','').replace('\u2212','-'); digits=len(plain.partition('.')[2])
    ok=abs(float(plain)-value)<=0.5*10**-digits+1e-9
    if ok: return printed
    s=f"{abs(value):,.{digits}f}" if ',' in printed else f"{abs(value):.{digits}f}"
    neg=value<0 and float(s.replace(',',''))!=0
    lead=printed[0] if printed[0] in '+-\u2212' else ''
    sign=('\u2212' if '\u2212' in printed or lead=='\u2212' else '-') if neg else ('+' if lead else '')
    return sign+s
for path in sorted((root/'benchmarks'/'claims').glob('*.py')):
    if len(sys.argv)>2 and not any(path.stem.startswith(a) for a in sys.argv[2:]): continue
    spec=importlib.util.spec_from_file_location(path.stem,path); m=importlib.util.module_from_spec(spec)
    try: spec.loader.exec_module(m)
    except Exception as e: print(path.stem,'CANNOT LOAD',repr(e)[:200]); continue
    page=root/m.PAGE; nb=page.suffix=='.ipynb'
    data=json.loads(page.read_text()) if nb else None
    texts=[''.join(c['source']) for c in data['cells']] if nb else [page.read_text()]
    for sentence,expected,*within in m.CLAIMS:
        try: values=expected() if callable(expected) else expected
        except Exception as e: print(m.PAGE,'CANNOT COUNT',sentence[:80],repr(e)[:120]); continue
        values=list(values) if isinstance(values,(list,tuple)) or hasattr(values,'tolist') and getattr(values,'ndim',0) else [values]
        pat=prose.NUMBER.join(re.sub(r'(\\ |\\\n|\s)+',r'\\s+',re.escape(p)) for p in sentence.split('{}'))
        for i,t in enumerate(texts):
            f=re.search(pat,t)
            if not f: continue
            new=t; off=0; ch=[]
            for g,v in zip(range(1,len(f.groups())+1),values):
                old=f.group(g); w=shown(old,v)
                if w!=old: ch.append(f'{old}->{w}')
                a,b=f.span(g); new=new[:a+off]+w+new[b+off:]; off+=len(w)-(b-a)
            if ch: print(m.PAGE.split('/')[-1],'|',re.sub(r'\s+',' ',new[max(0,f.start()):f.end()+off])[:220],'|',' '.join(ch))
            texts[i]=new; break
        else: print(m.PAGE.split('/')[-1],'NOT FOUND',sentence[:100],[round(float(v),3) for v in values])
    if nb:
        for c,t in zip(data['cells'],texts): c['source']=t.splitlines(keepends=True)
        page.write_text(json.dumps(data,indent=1,ensure_ascii=False)+'\n')
    else: page.write_text(texts[0])
