"""Embedded worlds: pictures of which every fact is known."""
