"""From spectra to a plan: which rank each layer gets, and what that is predicted to cost."""

from spectrim.lazy import attach

__getattr__, __dir__ = attach(__name__, __file__)
__all__ = __dir__()  # noqa: PLE0605
