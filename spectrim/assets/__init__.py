"""Bundled models and the generated data they were trained on."""
