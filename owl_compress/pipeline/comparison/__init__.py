"""Comparisons: the cells of a grid carried out on one model after the other, each cell a row."""
