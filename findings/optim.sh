#!/usr/bin/env bash
# jax 0.10.2 (also 0.12.0.1), CPU: what XLA complains of is a jax.errors.JaxRuntimeError in the first
# call of a jitted function, and a plain ValueError with the same text in later calls, which take a
# shorter way through C++. So `except jax.errors.JaxRuntimeError` around a training step catches an
# out-of-memory error of the first step only.
#
# Seen:
#   first call: JaxRuntimeError RESOURCE_EXHAUSTED
#   later call: ValueError RESOURCE_EXHAUSTED
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$folder/memory.py" <<'PYTHON'
import resource

import jax
import jax.numpy as jnp


def tell(when, call):
    try:
        call()
    except Exception as error:
        print(f"{when} call: {type(error).__name__} {str(error).partition(':')[0]}")


@jax.jit
def ones(x):
    return jnp.ones(2**22) + x


tell("first", lambda: jax.jit(lambda x: jnp.ones(2**45) * x)(1.0))
ones(1.0).block_until_ready()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**23, -1))
tell("later", lambda: [ones(1.0).block_until_ready() for _ in range(1000)])
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/memory.py")
echo "$seen"
test "$seen" = "first call: JaxRuntimeError RESOURCE_EXHAUSTED
later call: ValueError RESOURCE_EXHAUSTED"
