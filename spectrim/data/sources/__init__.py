"""Where text comes from: one file per source.

A source has `FORM` (what the user types), `matches(spec)` and `documents(spec, field)`.
`documents` returns a list when the text is in memory, an iterator when it streams.
"""
