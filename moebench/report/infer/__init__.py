"""Statistics: arms against their baseline, with intervals, p values and contrasts."""
