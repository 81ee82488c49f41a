"""Every test runs in float64, with ranks that must match and strict settings."""

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
