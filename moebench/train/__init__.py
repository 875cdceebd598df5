"""From a config and a corpus to rows of metrics: the step, the loop and its checkpoints."""
