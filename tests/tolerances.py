"""Every tolerance of the tests, in one place, each with its reason."""

import torch

BATCH_SPLIT_RELATIVE = 1e-5
"""Float32 matrix products may be summed in another order for another batch size."""

PROCESSES_RELATIVE = 1e-12
"""Float64 sums over tokens, added up by several processes in another order."""

FLOAT32_RELATIVE = 1e-5
"""A figure computed twice in float32 by two routes."""

BFLOAT16_RELATIVE = 2e-2
"""The loss of a model in bfloat16 (8 bits of mantissa) against float32."""

CUT_LOGITS_RELATIVE = 1e-5
"""Logits of one plan, its factors rounded to float32 before or after they are pivoted."""

QUANTIZED_DENSE_RELATIVE = 1e-4
"""Logits of dequantized factors in float32, multiplied out before or in the product."""

SUMMED_GRADIENTS_RELATIVE = 1e-5
"""A gradient in float32, of a sum and as a sum."""

ELASTIC_DENSE_ABSOLUTE = 1e-3
"""Outputs of size ten: a dense weight multiplied out of components in float32."""

PUBLISHED_PERPLEXITY_RELATIVE = 1e-3
"""A real model's perplexity on another machine or torch version."""

DENSE_EXPORT_ABSOLUTE = 1e-6
"""Logits of size one: W x against left (right x), both in float32."""

ONNX_ABSOLUTE = 2e-6
"""Logits of size one: the same float32 products by ONNX Runtime's kernels."""

FLOAT64_RELATIVE = 1e-8
"""Float64 linear algebra of small, moderately conditioned matrices by two routes."""

SPECTRUM_RELATIVE = 1e-6
"""Singular values from a Gram matrix against a direct SVD, relative to the largest."""

KRONECKER_RELATIVE = 1e-3
"""Singular vectors from Lanczos that stops when the singular value has settled to 1e-8."""

AUTOGRAD_RELATIVE = 5e-5
"""Gradient statistics of a float32 model against autograd on the same model in float64."""

BFLOAT16_LAYER_FACTOR = 4.0
"""A factored layer in bfloat16 rounds twice where the dense one rounds once."""

MODULE_BFLOAT16_RELATIVE = 3e-2
"""A small module in bfloat16 against float64 on the same rounded tensors, in the norm."""

CONSTRAINT_FLOAT64 = 1e-9
"""Orthonormality, sums and norms of float64 matrices after 100 training steps."""

ORTHONORMAL_BFLOAT16 = 1e-2
"""Entries of `S^T S - I` of a basis rounded to 8 bits of mantissa."""

LIMIT_RELATIVE = 5e-3
"""A power of .001 in place of the logarithm, on logarithms of size one to three."""

KFAC_RELATIVE = 0.05
"""The quadratic model of the divergence at logits of a few hundredths."""

SAMPLED_FISHER_RELATIVE = 0.05
"""The trace of a Fisher matrix estimated from a few thousand sampled labels."""

BUDGET_UNUSED = 1e-3
"""Share of the budget that a plan of forty layers may leave unspent."""

LOSS_RELATIVE = 1e-9
"""Sums of predicted losses in another order."""

PRODUCT_ABSOLUTE = 2e-5
"""Logits of size one after two blocks: float32 factors against their product."""

FULL_RANK_ABSOLUTE = 2e-5
"""Logits of size one: every layer as a product of factors of full rank, rounded to float32."""

DIVERGENCE_RELATIVE = 1e-3
DIVERGENCE_ABSOLUTE = 1e-6
"""Nats per token from float32 logits of size one, a difference of sums over 128 words."""

SECOND_ORDER_RELATIVE = 0.15
"""Half the mean square of 300 draws of labels of 27 tokens, in place of its expectation."""

JOINT_ERROR_ABSOLUTE = 1e-6
"""A relative error as the root of a difference: 1e-12 of the energy is rounding."""

QUADRATIC_RELATIVE = 1e-5
"""Importance on a quadratic loss, against the loss with the basis removed (float64)."""

HUTCHINSON_VARIANCE_RELATIVE = 0.25
"""Sample variance of a few hundred probes against the exact one, in the mean over bases."""

CALIBRATED_RATIO = 1e-3
"""A layer's curvature over its squared gradients: differences of gradients beside exact traces,
in addition to the noise of the probes."""

CALIBRATED_CORRELATION = 0.9
"""Rank correlation with measured removals that the calibrated curvature has on the arithmetic
model (measured .96 to .99) and squared gradients alone have not (.6 to .75)."""

DIFFERENCE_RELATIVE = 1e-3
"""Central differences of gradients against automatic second derivatives (float64)."""

SEQUENTIAL_RELATIVE = 1e-3
"""Factors in float32 from float32 sums of inputs, against float64; eigenvectors amplify it."""

OBJECTIVE_RELATIVE = 1e-4
"""The same factors' weighted error, which is flat around its minimum."""

HILL_RELATIVE = 1e-2
"""A tail exponent from quantiles instead of the continuous law."""

KERNEL_RELATIVE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""A fused operator against float64: a few roundings of values between its products."""

OUTPUT_METRIC_RELATIVE = 0.15
"""Second order against the divergence itself, with one drawn label for each of 1152 tokens."""

LATENCY_RELATIVE = 0.25
"""Time of a whole model's layers against that of its shapes alone, on a machine in use."""

FROZEN_ABSOLUTE = 2e-6
"""Logits of size one from stored float32 weights, by another processor or version of torch."""

FAMILY_ABSOLUTE = 1e-5
"""Logits of size one to ten of the same float32 tensors, loaded by another route."""

ROUNDING_ABSOLUTE = 1e-9
"""Float64 quantities of size one that are zero or equal but for rounding."""

RIEMANN_RELATIVE = 1e-6
"""A fixed point stopped by two libraries at their own measure of a change of 1e-12."""

SAMPLE_MEAN_RELATIVE = 0.03
"""The mean of 400 samples whose own standard deviation is a tenth to a fifth of it."""

RIDGE_RELATIVE = 1e-4
"""Curved means of covariances, of a ridge of 1e-6 and an iteration that ends at 1e-4."""

RECOVERY_RELATIVE = 1e-3
"""A planted matrix from l1 subgradient steps whose length has decayed to 1e-6 of the first."""
MERGED_ABSOLUTE = 2e-5
"""Logits of size one: W x + B (A x) against (W + B A) x, all in float32."""

SLOPE_RELATIVE = 1e-3
"""A derivative by central differences of a loss whose norms and routers round to float32."""
