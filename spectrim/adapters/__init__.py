"""Low-rank adapters on compressed models."""
