"""What every long run needs: files, cache, processes, progress, memory, tracking."""
