"""The training loop, its parameters, coordinates and losses."""
