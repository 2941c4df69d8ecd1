"""One file per task format; see `spectrim.tasks`."""
