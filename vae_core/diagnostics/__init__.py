"""Measures of what a model learned: its likelihood, what z says of x, how q(z) meets p(z), how codes use their bits."""
