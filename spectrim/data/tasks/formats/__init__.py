"""Formats of tasks: one file per format.

A format has `FORM` (what the user types), `matches(place)` (whether a spec without the
format's name is one of its own) and `examples(place, settings)`, an iterable of TaskExamples;
`place` is the spec without the leading `NAME:`.
"""
