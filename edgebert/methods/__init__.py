"""Input-adaptive methods in torch: one file each, with its paper, its settings and what it compiles to."""
