"""The walk over a model's tree: find linear layers, see them all alike, replace them."""
