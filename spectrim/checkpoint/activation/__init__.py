"""Let unmodified programs read compressed checkpoints."""
