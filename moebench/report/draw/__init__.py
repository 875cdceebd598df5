"""Plots of one table, as Vega-Lite specifications: pictures in a file, interactive on the page."""
