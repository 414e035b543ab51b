"""Evaluation of a synthetic data set: one file an axis, each from the inputs to its records."""
