"""Pictures and texts about a result."""
