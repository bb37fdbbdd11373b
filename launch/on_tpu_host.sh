#!/usr/bin/env bash
# What launch/tpu_vm.sh has every host do: install, start ARGUMENTS, status, stop.
# In the home folder: flaxclip (the checkout), venv, and of the run run.log, run.pid while it runs,
# run.exit when it has ended.
set -euo pipefail
cd
step=$1
shift
case $step in
  install)
    # The images' own Python is older than 3.11.
    python3 -m pip install -q --user uv
    export PATH=$HOME/.local/bin:$PATH
    uv venv -q --clear --python 3.13 venv
    VIRTUAL_ENV=venv uv pip install -q -c flaxclip/launch/constraints.txt -e './flaxclip[tpu,gcs]'
    ;;
  start)
    rm -f run.exit run.pid
    nohup bash "$0" wait "$@" < /dev/null >> run.log 2>&1 &
    # Until then it would look killed.
    until [[ -e run.pid || -e run.exit ]]; do sleep 0.1; done
    ;;
  wait) # Detached, until the run ends.
    # shellcheck source=/dev/null
    source venv/bin/activate
    bash flaxclip/launch/run.sh tpu "$@" &
    echo $! > run.pid
    # A run that is told to stop ends by itself, and says how.
    wait $! && code=0 || code=$?
    echo "$code" > run.exit
    rm run.pid
    ;;
  status)
    if [[ ! -e run.exit && -e run.pid ]] && kill -0 "$(cat run.pid)"; then
      echo run=running
    else
      # It may have ended just now, and be about to say how.
      [[ -e run.exit ]] || sleep 1
      if [[ -e run.exit ]]; then echo "run=$(cat run.exit)"; else echo run=killed; fi
    fi
    ;;
  stop) if [[ -e run.pid ]]; then kill -TERM "$(cat run.pid)"; fi ;;
esac
