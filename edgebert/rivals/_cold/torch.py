"""A checkpoint in PyTorch: torch and transformers, eager or compiled."""

from __future__ import annotations

from collections.abc import Callable


def start(folder: str, threads: str, form: str) -> Callable[[str], int]:
    """Opens a checkpoint with its tokenizer, `eager` or `compiled`; returns what gives a text's label number."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(int(threads))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    forward = torch.compile(model, dynamic=True) if form == "compiled" else model

    def answer(text: str) -> int:
        with torch.inference_mode():
            return int(forward(**tokenizer(text, truncation=True, return_tensors="pt")).logits.argmax())

    return answer
