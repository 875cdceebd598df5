"""What a run is judged by: quality, load and specialisation, each from plain counts and sums."""
