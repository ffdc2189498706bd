"""Reinforcement learning of vision-language models in JAX."""
