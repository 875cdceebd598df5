"""A plain decoder-only MoE transformer that returns its routing."""
