"""Rewards: text in, numbers out, on the host."""
