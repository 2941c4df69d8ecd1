"""Foundations of long runs: files, cache, snapshots, processes, context, memory, tracking."""
