# after ask 2: the tables of 20, then the real eye's features, trainings and answers
while pgrep -f /tmp/after.sh >/dev/null; do sleep 3; done
cd /work/wt/new; export PYTHONPATH=$PWD OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
git add data/pocket-2; git commit -qm "The third training of the pocket, of seed 2" -- data/pocket-2
nice -n 5 .venv/bin/python benchmarks/pocketbench.py write > ~/.cache/fopru/write.log 2>&1 &
nice -n 5 .venv/bin/python data/making score --n 200 --seed 1 --out data/results/pocket/score.parquet > ~/.cache/fopru/score.log 2>&1 &
wait
R="nice -n 10 .venv/bin/python benchmarks/real_eye"
OMP_NUM_THREADS=2 $R train --seed 0 > ~/.cache/fopru/eye0.log 2>&1
($R train --seed 1 > ~/.cache/fopru/eye1.log 2>&1) &
($R train --seed 2 > ~/.cache/fopru/eye2.log 2>&1) &
wait
