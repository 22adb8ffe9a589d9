"""Answers questions about a passage with a bundle and shows where the answers stand.

python examples/answer_questions.py BUNDLE PASSAGE.txt "Which river is west of Plymouth?" "Who built it?"
"""

import sys
from pathlib import Path

from edgebert import EdgeModel

bundle, passage, *questions = sys.argv[1:]
context = Path(passage).read_text(encoding="utf-8")
with EdgeModel.from_pretrained(bundle, threads=1) as model:
    for question, answer in zip(questions, model.answer(questions, context), strict=True):
        print(f"{answer.text} ({answer.score:.3f}, characters {answer.start} to {answer.end}): {question}")
