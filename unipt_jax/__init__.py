"""UniPT in JAX: text-to-image person re-identification."""
