cd /work/wt/new
export PYTHONPATH=$PWD OMP_NUM_THREADS=1
P=".venv/bin/python benchmarks/pocketbench.py ask"
$P 0 curves methods
$P 1 curves methods
$P 0 "weights" "rows" "same mean" "five tokens" readings beyond validation
$P 1 "weights" "rows" "same mean" "five tokens" readings beyond validation
$P 0
$P 1
