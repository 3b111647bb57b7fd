# when seed 2 ends: its folder, and ask 2 by two processes
while pgrep -f "making train" >/dev/null; do sleep 2; done
S=~/.cache/fopru/pocket-full/seed2; D=/work/wt/new/data/pocket-2
[ -f $S/model.safetensors ] || exit 1
mkdir -p $D
for f in chat_template.jinja config.json generation_config.json model.safetensors processor_config.json tokenizer.json tokenizer_config.json; do cp $S/$f $D/; done
cd /work/wt/new; export PYTHONPATH=$PWD OMP_NUM_THREADS=1
P=".venv/bin/python benchmarks/pocketbench.py ask 2"
(nice -n 3 $P curves methods > ~/.cache/fopru/ask2a.log 2>&1; nice -n 3 $P later copies composed "five tokens" > ~/.cache/fopru/ask2a2.log 2>&1) &
(nice -n 3 $P weights rows "same mean" "five tokens" readings beyond validation copies composed later > ~/.cache/fopru/ask2b.log 2>&1) &
wait
nice -n 3 $P > ~/.cache/fopru/ask2c.log 2>&1
