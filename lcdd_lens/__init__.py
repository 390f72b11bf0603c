"""Sparse, causal carriers of supervised fine-tuning for TransformerLens models."""

__version__ = "0.1.0"
