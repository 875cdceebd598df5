"""How docs/results.md is made: records to CSVs, and CSVs to the page."""
