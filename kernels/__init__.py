"""Kernels of vrl_jax; usable alone, they import jax only."""
