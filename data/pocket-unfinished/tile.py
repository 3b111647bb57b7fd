"""tile.py OUT name name name name: figures of /tmp/figs in a 2-column sheet"""
import sys
from PIL import Image
names=sys.argv[2:]; ims=[Image.open(f'/tmp/figs/{n}.png').convert('RGB') for n in names]
rows=(len(ims)+1)//2; out=Image.new('RGB',(1500,700*rows),'white')
for k,i in enumerate(ims):
    i.thumbnail((745,695)); out.paste(i,((k%2)*750,(k//2)*700))
out.save(sys.argv[1])
