"""A model in ONNX: onnxruntime and tokenizers, the least that can open it."""

from __future__ import annotations

from collections.abc import Callable


def start(folder: str, threads: str, max_length: str) -> Callable[[str], int]:
    """Opens `model.onnx` and `tokenizer.json`; returns what gives a text's label number."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.enable_truncation(int(max_length))
    tokenizer.no_padding()  # some files fill every text up to a fixed length, which transformers does not do either

    def answer(text: str) -> int:
        row = tokenizer.encode(text)
        values = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
        inputs = {name: np.array([values[name]], np.int64) for name in names}
        return int(session.run(None, inputs)[0].argmax())

    return answer
