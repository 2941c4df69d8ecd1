"""`I = -c g + 1/2 c^2 E[(a d)^2]`: gradient and each token's own curvature, one gradient pass.

With a temperature the curvature comes from labels that the model draws itself (see
`spectrim.pruning.sampled_labels`), by one more forward and gradient pass for each of `draws`:
for models that are sure of the task's answers.
"""

from __future__ import annotations

from functools import partial
from operator import attrgetter

from spectrim.pruning.importance._closed_form import ClosedFormOptions, closed_form

REFERENCE = "the diagonal of the empirical Fisher, in BSI, arXiv:2605.01627"
Options = ClosedFormOptions
estimate = partial(closed_form, curvature=attrgetter("fisher"))
