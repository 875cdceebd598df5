"""Records become a data frame: runs, metrics and curves, and what could not be read."""
