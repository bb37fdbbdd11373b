#!/usr/bin/env bash
# jax 0.10.2. JAX's cache of compiled programs writes an entry in place, under its final name, and
# never replaces one that is there: `LRUCache.put` returns if the file exists
# (jax/_src/lru_cache.py). An entry that a killed process or a full disk has cut off is thus kept for
# good: every later process reads it, warns, compiles for itself, and leaves the file as it is. Only
# deleting the file, or the folder, ends it. One would expect the next process to write it anew.
#
# Seen:
#   first process: 0 of 3 programs from the cache, 0 warnings
#   second: 3 of 3 programs from the cache, 0 warnings
#   third, entries cut to half: 0 of 3 programs from the cache, 3 warnings
#   fourth: 0 of 3 programs from the cache, 3 warnings
#   entries as they were cut: 3 of 3
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$folder/program.py" <<'PYTHON'
import sys
import warnings

import jax
import jax.numpy as jnp

jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.ones((8, 8)))
hits, misses = (events.count(f"/jax/compilation_cache/cache_{what}") for what in ("hits", "misses"))
print(f"{hits} of {hits + misses} programs from the cache, {len(caught)} warnings")
PYTHON
run() { JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/program.py" "$folder/cache"; }
sizes() { stat -c '%n %s' "$folder"/cache/*-cache; }

{
  echo "first process: $(run)"
  echo "second: $(run)"
  for entry in "$folder"/cache/*-cache; do
    truncate -s $(($(stat -c %s "$entry") / 2)) "$entry"
  done
  cut=$(sizes)
  echo "third, entries cut to half: $(run)"
  echo "fourth: $(run)"
  same=$(comm -12 <(sort <<< "$cut") <(sizes | sort) | wc -l)
  echo "entries as they were cut: $same of $(sizes | wc -l)"
} | tee "$folder/seen"
diff <(sed -n 's/^#   //p' "$0") "$folder/seen"
