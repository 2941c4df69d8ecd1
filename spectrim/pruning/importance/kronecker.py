"""`I = -c g + 1/2 c^2 (l^T C_g l)(r^T C_x r)`: OBD's curvature, one gradient pass.

With a temperature the curvature comes from labels that the model draws itself (see
`spectrim.pruning.sampled_labels`), by one more forward and gradient pass for each of `draws`:
for models that are sure of the task's answers.
"""

from __future__ import annotations

from functools import partial
from operator import attrgetter

from spectrim.pruning.importance._closed_form import ClosedFormOptions, closed_form

REFERENCE = "the curvature of Li et al., 2026, arXiv:2604.00821, in BSI, arXiv:2605.01627"
Options = ClosedFormOptions
estimate = partial(closed_form, curvature=attrgetter("kronecker"))
