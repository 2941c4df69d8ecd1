"""Estimators around low-dimensional structure, under the contract of scikit-learn.

One file each, listed by its name. A module declares

    ESTIMATOR     the class: parameters in the constructor, logic in `fit`, results with a
                  trailing underscore; rows are samples
    REFERENCE     the source
    QUICK         optional, constructor arguments with which a test takes a moment
    TAKES         optional, what `fit` takes where it is not rows of numbers ("images")

and may give the method as functions of tensors beside it. They need scikit-learn and SciPy
(`pip install 'spectrim[estimators]'`), and no transformers.

    from spectrim.estimators import SubspaceDetector

    labels = SubspaceDetector(n_components=0.9).fit(normal).predict(rows)  # -1 for outliers
"""

from __future__ import annotations

from spectrim.lazy import attach

__getattr__, __dir__ = attach(__name__, __file__)
__all__ = __dir__()  # noqa: PLE0605
