"""How an episode comes about."""
