"""Identify this library in caches and checkpoints, and say how it is installed."""

__version__ = "0.1.0"
"""Version of this library."""
QUANT_METHOD = "spectrim"
"""Name of the format in a checkpoint's `quantization_config`."""
REPOSITORY = ""
"""Address of the public git repository, set by a release (CONTRIBUTING.md); "" before."""


def install_command() -> str:
    """Return the command that installs spectrim: from its repository, else in a clone of it."""
    if REPOSITORY:
        return f"pip install 'spectrim @ git+{REPOSITORY}'"
    return "pip install ."


def install_words() -> str:
    """Return the command in backticks, with where it is run before a release."""
    where = "" if REPOSITORY else " in a clone of its repository"
    return f"`{install_command()}`{where}"
