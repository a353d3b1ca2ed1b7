"""The durable job: its records, its queue, and the rules by which attempts own it. Imports neither torch nor jax."""
