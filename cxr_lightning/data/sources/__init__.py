"""Readers of chest X-ray data sets, one file each."""
