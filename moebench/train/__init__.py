"""Training: from a config and a corpus to rows of metrics and checkpoints."""
