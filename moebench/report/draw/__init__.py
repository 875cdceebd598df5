"""Plots of one table, as SVG and PNG."""
