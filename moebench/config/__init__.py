"""From what the user typed to one typed, checked config, and from that to a run's identity."""
