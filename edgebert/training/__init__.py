"""Trains a method on labelled texts and writes a checkpoint."""

from __future__ import annotations

from edgebert.training.run import train_model

__all__ = ["train_model"]
