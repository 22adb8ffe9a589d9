"""Answers texts with a bundle and shows how deep each one had to go.

python examples/answer_texts.py BUNDLE "a gripping film" "two hours I will not get back"
"""

import sys

from edgebert import EdgeModel

with EdgeModel.from_pretrained(sys.argv[1], threads=1) as model:
    for text, answer in zip(sys.argv[2:], model(sys.argv[2:]), strict=True):
        print(f"{answer.label} {answer.score:.3f} after {answer.layers_run} layers: {text}")
