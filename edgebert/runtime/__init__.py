"""Runs a bundle's program conditionally on ONNX Runtime; needs numpy, onnxruntime and tokenizers, nothing heavier."""
