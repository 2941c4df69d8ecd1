"""Every tolerance of the tests, in one place, each with its reason."""

BATCH_SPLIT_RELATIVE = 1e-5
"""Float32 matrix products may be summed in another order for another batch size."""

FLOAT32_RELATIVE = 1e-5
"""A figure computed twice in float32 by two routes."""

BFLOAT16_RELATIVE = 2e-2
"""The loss of a model in bfloat16 (8 bits of mantissa) against float32."""

PUBLISHED_PERPLEXITY_RELATIVE = 1e-3
"""A real model's perplexity on another machine or torch version."""

DENSE_EXPORT_ABSOLUTE = 1e-6
"""Logits of size one: W x against left (right x), both in float32."""
