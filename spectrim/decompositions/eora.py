"""EoRA: `min ||(R - R_hat) L_in||_F`, R the error of a compressed W, C_x = L_in L_in^T.

It corrects a compressed weight (`spectrim quantize --method eora`). Its L_in is the eigenvalue
root of C_x; the optimum depends on C_x alone, so this is `svd_llm` on R.
"""

from __future__ import annotations

from spectrim.decompositions.svd_llm import REQUIRES, Options, metric

REFERENCE = "Liu et al., 2024, arXiv:2410.21271"
COMMAND = "spectrim quantize MODEL -o OUT --data TEXT --method eora"

__all__ = ["COMMAND", "REFERENCE", "REQUIRES", "Options", "metric"]
