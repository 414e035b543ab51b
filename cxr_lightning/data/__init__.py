"""Chest X-ray data: vocabulary, readers, prepared format, data module."""
