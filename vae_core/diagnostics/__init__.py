"""Measures of what a model learned: whether its codes use their bits."""
