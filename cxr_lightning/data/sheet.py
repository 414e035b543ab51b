"""Contact sheets: many radiographs as one picture."""

import numpy as np
from jaxtyping import UInt8
from torch import Tensor
from torchvision.utils import make_grid


def contact_sheet(
    images: UInt8[Tensor, "n 1 h w"], columns: int
) -> UInt8[np.ndarray, "rows columns"]:
    """Raw images side by side, row by row, with a grey line between them."""
    grid = make_grid(images.cpu(), nrow=min(columns, len(images)), padding=2, pad_value=128)
    return grid[0].numpy()
