#!/bin/bash
# What waits for a GPU, most important first, for a machine that is lent for minutes:
#
#     OUT=folder benchmarks/gpu.sh           # about twelve minutes; DEVICE=cpu tries the script
#
# 1. times and memory of true shapes with random weights   $OUT/h200.parquet, h200.json
#    A short prefill waits for Python, so nothing else may run beside it.
# 2. a training of the pocket model for each of $SEEDS     $OUT/seed3.tar (model, log)
#    An H200 needs a minute or two to compile it, and takes 22 steps a second, of 9,900. What is not
#    done in $TRAIN seconds leaves its checkpoint in pieces: cat seed3.pt.* > checkpoint.pt, and it
#    goes on on any machine.
#
# transformers has to be that of pyproject.toml: carry its wheel where no registry is reached.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:?a folder for results} DEVICE=${DEVICE:-cuda} MEASURE=${MEASURE:-180} TRAIN=${TRAIN:-540}
SHAPES=${SHAPES-llava-1.5-7b llava-next-7b} SEEDS=${SEEDS-3} WORK=$(mktemp -d)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$OUT"
for shape in $SHAPES; do
  for batch in 1 8; do  # a table is written when it is whole
    timeout $((MEASURE / 4)) python3 -m fopru measure --shape "$shape" --device "$DEVICE" \
      --batch $batch --new-tokens 8 --turns 7 --retention 0.25 --method fopru --method divprune \
      --method random --method fastv --out "$OUT/h200.parquet"
  done
done
for seed in $SEEDS; do
  OMP_NUM_THREADS=2 timeout "$TRAIN" python3 data/making train "$WORK/seed$seed" \
    --checkpoints "$WORK/seed$seed" --seed "$seed" --device "$DEVICE" > "$WORK/seed$seed.log" 2>&1 &
done
wait
for seed in $SEEDS; do
  tail -c 300 "$WORK/seed$seed.log"
  if [ -f "$WORK/seed$seed/log.csv" ]; then
    tar -C "$WORK" --exclude checkpoint.pt -cf "$OUT/seed$seed.tar" "seed$seed"
  elif [ -f "$WORK/seed$seed/checkpoint.pt" ]; then
    split -b 15M "$WORK/seed$seed/checkpoint.pt" "$OUT/seed$seed.pt."
  fi
done
