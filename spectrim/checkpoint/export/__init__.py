"""Export checkpoints for programs that run without spectrim."""
