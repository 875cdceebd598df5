"""A plain decoder-only MoE transformer that returns what its routers did."""
