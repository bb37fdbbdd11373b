#!/usr/bin/env bash
# flaxclip.train on one host of a job, with XLA set up for many: what every launcher here runs.
#
#   launch/run.sh tpu|gpu ARGUMENTS OF flaxclip.train
#
# Flags that XLA_FLAGS or LIBTPU_INIT_ARGS hold already come last, and win.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=$1
shift

flags=()
case $kind in
  tpu)
    # On already in libtpu 0.0.42 and 0.0.52, as compiled programs show, and so not here: the
    # latency-hiding scheduler, asynchronous collectives fused with the computation around them.
    ;;
  gpu)
    flags=(
      # Parameters of the next block are gathered, and gradients of the last one reduced, while a
      # block computes. Off by default.
      --xla_gpu_enable_latency_hiding_scheduler=true
      # The same across iterations of the scan over blocks.
      --xla_gpu_enable_pipelined_all_gather=true
      --xla_gpu_enable_pipelined_reduce_scatter=true
      # Each exchange costs latency: what is due together goes together, up to a block of ViT-H
      # (20 M parameters in float32) at once. The default is 30 MiB.
      --xla_gpu_all_gather_combine_threshold_bytes=134217728
      --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
      --xla_gpu_all_reduce_combine_threshold_bytes=134217728
    )
    # JAX takes three quarters of the memory if not told that nothing else runs here.
    export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
    export XLA_FLAGS="${flags[*]} ${XLA_FLAGS:-}"
    ;;
  *)
    echo "run.sh: run on tpu or gpu, not on $kind" >&2
    exit 2
    ;;
esac

# Compiled programs are kept in the workdir, where all hosts find them: JAX writes those of the
# first process alone, and a run that starts again, on new machines too, compiles nothing.
workdir=''
for word in "$@" ''; do
  [[ ${previous:-} == --workdir ]] && workdir=$word
  [[ $word == --workdir=* ]] && workdir=${word#*=}
  previous=$word
done
if [[ -n $workdir ]]; then
  export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$workdir/compiled}
fi

exec python -m flaxclip.train "$@"
