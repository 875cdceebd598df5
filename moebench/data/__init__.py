"""Text by domain, as byte tokens in a cache, and the batches made of it."""
