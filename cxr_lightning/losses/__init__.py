"""Losses: pure functions and thin modules."""
