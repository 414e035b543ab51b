"""Networks: plain torch modules, no training logic."""
