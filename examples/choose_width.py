"""Runs a bundle with optional pieces at several widths, and shows what each costs.

python examples/choose_width.py BUNDLE TEXT...
"""

import sys

from edgebert import EdgeModel

with EdgeModel.from_pretrained(sys.argv[1]) as model:
    for width in (1.0, 0.75, 0.5, 0.25):
        model.set_policy("width", width=width)
        for text, answer in zip(sys.argv[2:], model(sys.argv[2:]), strict=True):
            print(
                f"width {width:.2f}: {answer.label} ({answer.score:.3f}), {answer.cost_ratio:.2f} of the cost: {text}"
            )
