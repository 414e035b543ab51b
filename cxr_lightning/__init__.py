"""cxr_lightning: synthetic chest X-rays for stated health conditions, with an honest evaluation."""

__version__ = "0.1.0"
