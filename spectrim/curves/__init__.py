"""Size/quality curves: the loss increase a layer is predicted to cause at every rank."""

from spectrim.curves.predicted import predicted_curve

__all__ = ["predicted_curve"]
