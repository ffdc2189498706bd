"""Data, the learner, checkpoints, and the loop."""
