"""Plans from spectra: the rank of each layer and the predicted cost."""

from spectrim.lazy import attach

__getattr__, __dir__ = attach(__name__, __file__)
__all__ = __dir__()  # noqa: PLE0605
