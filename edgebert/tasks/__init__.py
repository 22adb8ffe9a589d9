"""Tasks: one file each, with its labels and its metric; no torch."""
