"""Task-specific compression: keep the bases whose removal would cost the task's loss most."""

from spectrim.lazy import attach

__getattr__, __dir__ = attach(__name__, __file__)
__all__ = __dir__()  # noqa: PLE0605
