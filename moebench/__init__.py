"""Balance-loss ablations for Mixture-of-Experts language models."""

__version__ = "0.2.0"
