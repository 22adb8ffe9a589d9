"""A model that optimum exported: optimum on ONNX Runtime, with the tokenizer of transformers."""

from __future__ import annotations

from collections.abc import Callable


def start(folder: str, threads: str) -> Callable[[str], int]:
    """Opens a folder with model and tokenizer; returns what gives a text's label number."""
    import onnxruntime
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = ORTModelForSequenceClassification.from_pretrained(
        folder, provider="CPUExecutionProvider", session_options=options
    )

    def answer(text: str) -> int:
        return int(model(**tokenizer(text, truncation=True, return_tensors="np")).logits.argmax())

    return answer
