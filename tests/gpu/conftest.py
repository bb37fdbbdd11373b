"""Here, unlike in the other tests, JAX may take whatever devices there are."""

import jax

jax.config.update("jax_platforms", None)
