"""Text by domain: where it comes from, its tokens in a cache, and the batches of a run."""
