"""Eight virtual CPU devices for every test, and small sets to train on."""

import os

import jax

if not os.environ.get("JAX_NUM_CPU_DEVICES"):
    jax.config.update("jax_num_cpu_devices", 8)
