"""Raw and model form."""

import torch

from cxr_lightning.data.transforms import to_image, to_model


def test_every_grey_value_comes_back():
    raw = torch.arange(256, dtype=torch.uint8)
    model = to_model(raw)
    assert model.dtype == torch.float32
    assert model[0] == -1.0
    assert model[255] == 1.0
    assert torch.equal(to_image(model), raw)


def test_values_are_rounded_not_truncated():
    grey = torch.tensor([10.4, 10.6, 99.51, 254.9])
    assert to_image(grey / 127.5 - 1.0).tolist() == [10, 11, 100, 255]


def test_values_outside_are_clamped():
    assert to_image(torch.tensor([-7.0, -1.001, 1.001, 7.0])).tolist() == [0, 0, 255, 255]


def test_half_precision_is_converted_in_float32():
    x = torch.linspace(-1, 1, 50).to(torch.bfloat16)
    assert torch.equal(to_image(x), to_image(x.float()))
