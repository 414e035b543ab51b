"""Blocks against plain references."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cxr_lightning.networks.blocks import (
    Downsample,
    ResBlock,
    SelfAttention,
    Upsample,
    group_norm,
    sinusoidal_embedding,
)


def test_sinusoidal_embedding_is_the_formula():
    t = torch.tensor([1.0, 37.0, 1000.0])
    ours = sinusoidal_embedding(t, 8)
    for row, time in zip(ours, t.tolist(), strict=True):
        angles = [time / 10_000 ** (i / 4) for i in range(4)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        # an angle of 1000 in float32 is known to 3e-5
        torch.testing.assert_close(row, torch.tensor(expected), rtol=0, atol=1e-4)


def test_times_have_different_embeddings():
    e = sinusoidal_embedding(torch.arange(1, 1001).float(), 32)
    nearest = torch.cdist(e, e).fill_diagonal_(math.inf).min()
    assert nearest > 1e-2


@pytest.mark.parametrize(("channels", "groups"), [(32, 32), (64, 32), (48, 16), (8, 8), (6, 2)])
def test_group_norm_has_groups_that_divide_the_channels(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_residual_block_starts_as_its_skip_connection():
    torch.manual_seed(0)
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 5)
    assert torch.equal(ResBlock(8, 8, 5)(x, embedding), x)
    block = ResBlock(8, 4, 5)
    assert torch.equal(block(x, embedding), block.skip(x))


def test_residual_block_modulates_by_one_plus_scale_and_shift(randomize):
    torch.manual_seed(0)
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 5)
    block = randomize(ResBlock(8, 6, 5))
    h = block.norm2(block.conv1(F.silu(block.norm1(x))))
    scale_shift = embedding @ block.film.weight.T + block.film.bias
    scale, shift = scale_shift[:, :6, None, None], scale_shift[:, 6:, None, None]
    expected = block.conv2(F.silu(h * (1 + scale) + shift)) + block.skip(x)
    # two orders of float32 sums of 54 terms of about 1
    torch.testing.assert_close(block(x, embedding), expected, rtol=0, atol=1e-5)


def test_residual_block_has_the_gradients_of_the_formula(randomize):
    """The norm's affine part differs by image: no image's gradient may reach another's."""
    torch.manual_seed(0)
    x = torch.randn(3, 8, 4, 4, requires_grad=True)
    embedding = torch.randn(3, 5, requires_grad=True)
    block = randomize(ResBlock(8, 8, 5))
    inputs = [x, embedding, *block.parameters()]

    def slow():
        h = block.norm2(block.conv1(F.silu(block.norm1(x))))
        scale, shift = block.film(embedding)[..., None, None].chunk(2, dim=1)
        return block.conv2(F.silu(h * (1 + scale) + shift)) + x

    weights = torch.randn(3, 8, 4, 4)
    ours = torch.autograd.grad((block(x, embedding) * weights).sum(), inputs)
    expected = torch.autograd.grad((slow() * weights).sum(), inputs)
    for gradient, reference in zip(ours, expected, strict=True):
        # float32 sums of up to 48 terms of about 10
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-4)


def test_residual_block_without_embedding_has_no_film():
    assert ResBlock(4, 4).film is None


def test_attention_equals_a_loop_over_heads_with_the_width_of_a_head_in_the_scale(randomize):
    torch.manual_seed(0)
    layer = randomize(SelfAttention(12, head_width=4))
    assert layer.heads == 3
    x = torch.randn(2, 12, 3, 5)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)
    heads = []
    for head in range(3):
        rows = slice(4 * head, 4 * head + 4)
        scores = q[:, rows].transpose(1, 2) @ k[:, rows] / 4**0.5
        heads.append(v[:, rows] @ scores.softmax(-1).transpose(1, 2))
    expected = x + layer.out(torch.cat(heads, dim=1).reshape(2, 12, 3, 5))
    # float32 sums of 15 terms of about 1, in another order
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [16, 64, 128, 192])
def test_attention_is_torchs_with_heads_of_64_channels(randomize, channels):
    torch.manual_seed(0)
    layer = randomize(SelfAttention(channels))
    assert layer.heads == max(channels // 64, 1)
    reference = nn.MultiheadAttention(channels, layer.heads, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(layer.qkv.weight.flatten(1))
        reference.in_proj_bias.copy_(layer.qkv.bias)
        reference.out_proj.weight.copy_(layer.out.weight.flatten(1))
        reference.out_proj.bias.copy_(layer.out.bias)
    x = torch.randn(2, channels, 4, 6, requires_grad=True)
    tokens = layer.norm(x).flatten(2).transpose(1, 2)
    attended = reference(tokens, tokens, tokens, need_weights=False)[0]
    expected = x + attended.transpose(1, 2).unflatten(-1, (4, 6))
    # float32 sums of up to 192 terms of about 1
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
    gradient, slow = (torch.autograd.grad(y.square().sum(), x)[0] for y in (layer(x), expected))
    torch.testing.assert_close(gradient, slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "heads"), [(63, 1), (128, 2), (224, 2), (256, 4), (320, 5)])
def test_heads_divide_the_channels(channels, heads):
    layer = SelfAttention(channels)
    assert layer.heads == heads
    assert layer(torch.zeros(1, channels, 2, 2)).shape == (1, channels, 2, 2)


def test_attention_starts_as_identity_and_has_at_least_one_head():
    layer = SelfAttention(8)
    assert layer.heads == 1
    x = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (8, 8)])
def test_upsampling_is_nearest_neighbour_then_convolution(size):
    torch.manual_seed(0)
    layer = Upsample(6)
    x = torch.randn(2, 6, *size, requires_grad=True)
    inputs = [x, *layer.parameters()]
    ours, expected = layer(x), layer.conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2))
    # float32 sums of 54 terms of about 0.1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    weights = torch.randn_like(expected)
    ours, expected = (torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, expected))
    for gradient, reference in zip(ours, expected, strict=True):
        # float32 sums of up to 512 terms of about 1
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "embedding"),
    [(ResBlock(8, 8, 5), True), (SelfAttention(8), False), (Upsample(8), False)],
)
def test_autocast_runs_the_blocks_in_bf16(randomize, layer, embedding):
    torch.manual_seed(0)
    layer = randomize(layer)
    given = [torch.randn(2, 8, 4, 4)] + [torch.randn(2, 5)] * embedding
    expected = layer(*given)
    with torch.autocast("cpu", torch.bfloat16):
        made = layer(given[0].bfloat16(), *given[1:])
    assert made.dtype == torch.bfloat16
    made.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    # bfloat16 has 8 bits: 2**-8 of values of about 4
    torch.testing.assert_close(made.float(), expected, rtol=0, atol=0.05)


def test_down_halves_and_up_doubles():
    x = torch.zeros(2, 4, 8, 6)
    assert Downsample(4)(x).shape == (2, 4, 4, 3)
    assert Upsample(4)(x).shape == (2, 4, 16, 12)
