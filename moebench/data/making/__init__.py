"""Prepare data: from the documents of a source to shards of tokens in the cache."""
