"""Metrics: extractors, Frechet distance, representation score."""
