"""A run folder -> curves and one HTML page."""
