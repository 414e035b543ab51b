import numpy as np
import torch

from cxr_lightning.data.sheet import contact_sheet


def test_images_in_rows_with_grey_lines():
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 4, 4)
    images[:, 0, 0, 0] = 200  # a corner, so that a turned image shows
    sheet = contact_sheet(images, 3)
    assert sheet.shape == (2 * 6 + 2, 3 * 6 + 2)
    for i in range(5):
        row, column = divmod(i, 3)
        tile = sheet[2 + 6 * row :, 2 + 6 * column :][:4, :4]
        assert np.array_equal(tile, images[i, 0].numpy())
    assert (sheet[:2] == 128).all()
    assert (sheet[8:, 14:] == 128).all()  # no sixth image


def test_fewer_images_than_columns():
    assert contact_sheet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), 8).shape == (8, 14)
