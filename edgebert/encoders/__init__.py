"""Encoder families in torch: one file each, equal to Hugging Face hidden state by hidden state."""
