"""How users open what rivals leave on disk, one way per file; each runs in a fresh process that `bench --cold` times.

A file defines `start(*arguments)`, which loads a model and returns a function that answers one text. It imports what a
user would, and nothing else of edgebert: whatever it imports is part of what is timed. It does so
when it starts, so that the file itself can be read where a package is missing.
"""
