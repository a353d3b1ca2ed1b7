"""Sparse autoencoder training: importable and usable from a notebook, without HTTP and without a queue."""

__version__ = "0.1.0"
