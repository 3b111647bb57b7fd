#!/bin/bash
# What waits for a GPU, most important first, for a machine that is lent for minutes:
#
#     OUT=folder benchmarks/gpu.sh           # about nine minutes; DEVICE=cpu tries the script
#
# 1. times and memory of true shapes with random weights   $OUT/h200.parquet, h200.json
# 2. three trainings of the pocket model side by side      $OUT/seed0.tar ... (model, log)
#    What is not done in $TRAIN seconds leaves its checkpoint in pieces: cat seed0.pt.* > checkpoint.pt
#
# transformers has to be that of pyproject.toml: carry its wheel where no registry is reached.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:?a folder for results} DEVICE=${DEVICE:-cuda} MEASURE=${MEASURE:-180} TRAIN=${TRAIN:-330}
SHAPES=${SHAPES-llava-1.5-7b llava-next-7b} WORK=$(mktemp -d)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$OUT"
for shape in $SHAPES; do
  timeout $((MEASURE / 2)) python3 -m fopru measure --shape "$shape" --device "$DEVICE" --dtype bfloat16 \
    --batch 1 --batch 8 --new-tokens 32 --turns 5 --retention 0.25 --retention 0.1 \
    --method fopru --method cls --method divprune --method dart --method tome --method random \
    --method fastv --out "$OUT/h200.parquet"
done
for seed in 0 1 2; do
  OMP_NUM_THREADS=2 timeout "$TRAIN" python3 data/making train "$WORK/seed$seed" \
    --checkpoints "$WORK/seed$seed" --seed $seed --device "$DEVICE" > "$WORK/seed$seed.log" 2>&1 &
done
wait
for seed in 0 1 2; do
  tail -c 300 "$WORK/seed$seed.log"
  if [ -f "$WORK/seed$seed/log.csv" ]; then
    tar -C "$WORK" --exclude checkpoint.pt -cf "$OUT/seed$seed.tar" "seed$seed"
  elif [ -f "$WORK/seed$seed/checkpoint.pt" ]; then
    split -b 15M "$WORK/seed$seed/checkpoint.pt" "$OUT/seed$seed.pt."
  fi
done
