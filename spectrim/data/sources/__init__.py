"""Sources of text: one file per source.

A source has `FORM` (what the user types), `matches(spec)` and `documents(spec, field)`.
`documents` returns a list when the text is in memory, an iterator when it streams; a document
is text, a conversation, or None for a record whose field is null. One of records also has
`open_records(spec)`: the whole records, each with where it stands, and the spec's field.
"""

from spectrim.data.sources._records import FIRST_RECORDS, home_expanded, text_of

__all__ = ["FIRST_RECORDS", "home_expanded", "text_of"]
