"""Token blocks from text."""

from spectrim.data.blocks import (
    BlockSettings,
    TokenBlocks,
    check_vocabulary,
    document_blocks,
    token_blocks,
)
from spectrim.data.loading import DEFAULT_TEXT, SOURCES, load_documents, open_documents

__all__ = [
    "DEFAULT_TEXT",
    "SOURCES",
    "BlockSettings",
    "TokenBlocks",
    "check_vocabulary",
    "document_blocks",
    "load_documents",
    "open_documents",
    "token_blocks",
]
