from tests.cli.conftest import cli, compress, shelf

__all__ = ["cli", "compress", "shelf"]
