"""Rows in, one self-contained HTML file out. Knows nothing of how the rows came about."""
