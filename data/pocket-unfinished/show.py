import json,sys
for c in json.load(open(sys.argv[1]))['cells']:
    if len(sys.argv)>2 and c['id'] not in sys.argv[2:]: continue
    print('=====',c['cell_type'],c['id'],c['metadata'].get('tags') or ''); print(''.join(c['source']))
