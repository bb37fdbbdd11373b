#!/usr/bin/env bash
# What one GPU shows in ten minutes, the most wanted first; each part that is done counts.
#
#     python -m venv peer && peer/bin/pip install torch==2.14.1 torchvision==0.29.1 open_clip_torch
#     experiments/perf/gpu.sh peer/bin/python [CHECKOUT]
#
# CHECKOUT is one of an earlier build, `git worktree add before ba0bdcf` say, whose own step.py runs
# between. Steps are in bfloat16; open_clip's as its --torchcompile makes them. With DEVICE=cpu, a
# small step in float32 shows that the script itself works.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
peer=$1 before=${2-} device=${DEVICE-cuda} precision=bfloat16 failed=0

# SECONDS COMMAND...: a part that fails or is too slow leaves the others their time.
part() {
  local limit=$1 begun=$SECONDS
  shift
  printf '\n$ %s\n' "$*"
  timeout "$limit" "$@" || { echo "ended with $? after $((SECONDS - begun)) s" && failed=1; }
}
# MODEL BATCH_SIZE SETTINGS...
step() {
  local model=$1 batch=$2
  shift 2
  part 150 python experiments/perf/step.py --peer-python "$peer" --device "$device" --rounds 1 \
    --model "$model" --batch-size "$batch" --precision "$precision" "$@" \
    --side flaxclip 'open_clip --torchcompile'
  if [ -n "$before" ]; then
    PYTHONPATH=$before part 100 python "$before/experiments/perf/step.py" --peer-python none \
      --device "$device" --rounds 1 --model "$model" --batch-size "$batch" \
      --precision "$precision" "$@" --side flaxclip
  fi
}

if [ "$device" = cuda ]; then
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
  step ViT-B-32-quickgelu 1024 --remat none --unroll 12
  step ViT-B-16 512
  step ViT-L-14 128
  part 60 python experiments/perf/loss_time.py --platform cuda --batch-size 32768
  part 120 python -m pytest -o addopts=-ra -q -s tests/gpu
else
  precision=float32
  step ViT-S-32 4
  part 60 python experiments/perf/loss_time.py --batch-size 1024 --rounds 1
fi
exit $failed
