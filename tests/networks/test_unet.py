"""The denoiser: attention where asked, what each form is shown, and its product."""

from itertools import product

import pytest
import torch

from cxr_lightning.errors import UserError
from cxr_lightning.networks.blocks import SelfAttention
from cxr_lightning.networks.unet import Denoiser
from cxr_lightning.types import FIELDS, Condition


def inputs(batch: int, channels: int = 1, size: int = 32) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, size, size)
    return {
        "y": torch.randn(shape, generator=generator),
        "t": torch.randint(1, 51, (batch,), generator=generator),
        "condition": Condition.unknown(batch),
        "x_hat": torch.rand(shape, generator=generator) * 2 - 1,
    }


def full(count: int) -> Condition:
    value = torch.rand(count, len(FIELDS), generator=torch.Generator().manual_seed(3))
    return Condition.of(value, torch.ones(count, len(FIELDS), dtype=torch.bool))


def attention_heights(network: Denoiser) -> list[int]:
    """Heights of the feature maps that pass an attention layer, in order."""
    heights: list[int] = []
    layers = [m for m in network.modules() if isinstance(m, SelfAttention)]
    hooks = [
        m.register_forward_hook(lambda _, args, __: heights.append(args[0].shape[-2]))
        for m in layers
    ]
    network(**inputs(1))
    for hook in hooks:
        hook.remove()
    assert len(heights) == len(layers)
    return heights


@pytest.mark.parametrize("attention", [[], [16], [8], [32, 8], [16, 8]])
@pytest.mark.parametrize("blocks", [1, 2])
def test_attention_is_at_the_requested_pixel_heights_and_in_the_middle_only(attention, blocks):
    network = Denoiser(
        image_size=32, width=4, multipliers=[1, 1, 1], blocks=blocks, attention=attention
    )
    expected = [8]  # the middle
    for height in attention:
        expected += [height] * (blocks + blocks + 1)  # down and up
    assert sorted(attention_heights(network)) == sorted(expected)


@pytest.mark.parametrize("attention", [[64], [4], [16, 7]])
def test_an_attention_height_that_does_not_occur_is_refused(attention):
    with pytest.raises(UserError, match=rf"^model\.attention: .* {attention[-1]} .*32, 16, 8, as"):
        Denoiser(image_size=32, width=4, multipliers=[1, 1, 1], attention=attention)


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(UserError, match=r"^model\.image_size: 36 .* multiple of 8\.$"):
        Denoiser(image_size=36, width=4, multipliers=[1, 1, 1, 1], attention=[])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"width": 7}, "width: 7 is odd.* use 8"),
        ({"width": 0}, "width: 0 is not possible"),
        ({"multipliers": []}, r"multipliers: \[\] makes no level"),
        ({"multipliers": [1, 0]}, "multipliers: 0 is not possible"),
        ({"blocks": 0}, "blocks: 0 is not possible"),
        ({"timesteps": 1}, "timesteps: 1 is not possible; use 2 or more"),
        ({"dropout": 1.0}, "dropout: 1.0 is not possible; use 0 to below 1"),
    ],
)
def test_settings_out_of_their_range(setting, message):
    with pytest.raises(UserError, match=rf"^model\.{message}"):
        Denoiser(image_size=32, attention=[], **setting)


@pytest.mark.parametrize("form", ["form1", "form2", "uncond"])
def test_untrained_output_is_exactly_zero(form):
    network = Denoiser(image_size=32, width=4, multipliers=[1, 2], attention=[16], form=form)
    assert not network(**inputs(2)).any()


@pytest.mark.parametrize(
    ("form", "batch", "channels"), list(product(["form1", "form2", "uncond"], [1, 3], [1, 3]))
)
def test_output_has_the_shape_of_the_state(make_denoiser, form, batch, channels):
    network = make_denoiser(form=form, channels=channels)
    out = network(**inputs(batch, channels))
    assert out.shape == (batch, channels, 32, 32)
    assert out.isfinite().all()
    assert out.std() > 0


@pytest.mark.parametrize("form", ["form1", "form2"])
def test_what_the_stem_is_shown(make_denoiser, form):
    """Form 1: [y, x_hat, 1]; Form 2: [y + x_hat, x_hat, 1]; unknown x_hat: [y, 0, 0] in both."""
    network = make_denoiser(form=form)
    shown: list[torch.Tensor] = []
    network.stem.register_forward_pre_hook(lambda _, args: shown.append(args[0]))
    given = inputs(2)
    y, x_hat = given["y"], given["x_hat"]
    network(**given, x_hat_known=torch.tensor([True, False]))
    network(**(given | {"x_hat": None}))
    state = y + x_hat if form == "form2" else y
    one, zero = torch.ones_like(y), torch.zeros_like(y)
    assert torch.equal(shown[0][0], torch.cat([state, x_hat, one], dim=1)[0])
    assert torch.equal(shown[0][1], torch.cat([y, zero, zero], dim=1)[1])
    assert torch.equal(shown[1], torch.cat([y, zero, zero], dim=1))


def test_forms_agree_for_a_network_of_x_t_minus_x_hat(make_denoiser):
    """With a stem that reads (state - x_hat) in Form 2 and the state in Form 1, y alone counts."""
    form1, form2 = make_denoiser(form="form1"), make_denoiser(form="form2")
    with torch.no_grad():
        weight = form1.stem.weight
        weight[:, 1:] = 0.0
        form2.stem.weight.copy_(weight)
        form2.stem.weight[:, 1] = -weight[:, 0]
    given = inputs(2)
    # (y + x_hat) - x_hat in float32, through a small network
    torch.testing.assert_close(form2(**given), form1(**given), rtol=0, atol=1e-4)


def test_unconditional_ignores_x_hat(make_denoiser):
    network = make_denoiser(form="uncond")
    given = inputs(2)
    out = network(**given)
    assert network.stem.in_channels == 1
    assert torch.equal(network(**(given | {"x_hat": None})), out)
    assert torch.equal(network(**(given | {"x_hat": 0.1 * given["x_hat"]})), out)


@pytest.mark.parametrize("form", ["form1", "form2"])
def test_x_hat_time_and_condition_matter(make_denoiser, form):
    network = make_denoiser(form=form)
    given = inputs(2)
    out = network(**given)
    for change in (
        {"x_hat": given["x_hat"].flip(-1)},
        {"x_hat": None},
        {"t": given["t"] % 50 + 1},
        {"condition": full(2)},
    ):
        assert not torch.allclose(network(**(given | change)), out, atol=1e-5), change


def test_a_condition_of_unknown_fields_is_the_null_condition(make_denoiser):
    network = make_denoiser()
    given = inputs(2)
    null = full(2).keep(torch.zeros(2, 1, dtype=torch.bool))
    assert torch.equal(network(**(given | {"condition": null})), network(**given))


def test_an_image_does_not_see_its_batch(make_denoiser):
    network = make_denoiser()
    given = inputs(3)
    given["condition"] = full(3)
    out = network(**given)
    alone = {k: v.rows(slice(1, 2)) if k == "condition" else v[1:2] for k, v in given.items()}
    # the same float32 sums, which kernels may order by batch size
    torch.testing.assert_close(network(**alone), out[1:2], rtol=0, atol=1e-4)


def test_all_arguments_survive_saving(tmp_path, make_denoiser):
    settings = {
        "image_size": 16,
        "width": 4,
        "multipliers": [1, 3],
        "blocks": 2,
        "attention": [8],
        "form": "form2",
        "prediction": "v",
        "schedule": "cosine",
        "timesteps": 77,
        "dropout": 0.25,
        "channels": 3,
        "latent_dim": 5,
        "text_dim": 4,
    }
    network = make_denoiser(**settings)
    network.save_pretrained(tmp_path)
    loaded = Denoiser.from_pretrained(tmp_path, local_files_only=True)
    for name in ("form", "prediction", "schedule", "timesteps", "channels", "image_size", "width"):
        assert getattr(loaded, name) == settings[name]
    given = inputs(2, 3, 16) | {"z": torch.ones(2, 5)}
    given["condition"] = full(2)._replace(text=torch.ones(2, 4))
    assert torch.equal(loaded.eval()(**given), network(**given))


def test_defaults_survive_saving_too(tmp_path):
    torch.manual_seed(0)
    Denoiser(image_size=32, width=8).save_pretrained(tmp_path)
    loaded = Denoiser.from_pretrained(tmp_path, local_files_only=True)
    assert (loaded.form, loaded.timesteps, loaded.stem.out_channels) == ("form1", 1000, 8)


def test_the_latent_code_matters_where_x_hat_may_be_seen(make_denoiser):
    network = make_denoiser(latent_dim=5)
    given, z = inputs(2), torch.randn(2, 5, generator=torch.Generator().manual_seed(3))
    first = torch.tensor([True, False])
    out = network(**given, z=z, x_hat_known=first)
    other = network(**given, z=-z, x_hat_known=first)
    assert not torch.allclose(out[0], other[0], atol=1e-4)
    assert torch.equal(out[1], other[1])
    nobody = torch.tensor([False, False])
    hidden = network(**given, z=z, x_hat_known=nobody)
    absent = network(**given, x_hat_known=nobody)
    assert torch.equal(hidden, absent)


@pytest.mark.parametrize("form", ["form1", "form2", "uncond"])
def test_gradient_reaches_all_parameters(make_denoiser, form):
    network = make_denoiser(form=form, latent_dim=5, text_dim=4).train()
    condition = full(2)._replace(text=torch.ones(2, 4))
    network(
        **(inputs(2) | {"condition": condition, "z": torch.ones(2, 5)})
    ).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_zero_terminal_snr_needs_velocities():
    with pytest.raises(UserError, match=r"^model\.schedule: zero_snr .* use model\.prediction v\."):
        Denoiser(image_size=32, width=8, schedule="zero_snr", prediction="epsilon")


def test_predict_gives_the_smallest_feature_map_beside_what_forward_gives(make_denoiser):
    denoiser = make_denoiser(multipliers=[1, 2, 3])
    y, t = torch.randn(2, 1, 32, 32), torch.tensor([3, 40])
    out, middle = denoiser.predict(y, t, Condition.unknown(2))
    assert torch.equal(out, denoiser(y, t, Condition.unknown(2)))
    assert middle.shape == (2, denoiser.middle_channels, 8, 8) == (2, 24, 8, 8)
    middle.sum().backward()
    assert denoiser.last_middle_conv.weight.grad.any()
    assert denoiser.head.weight.grad is None
    assert all(p.grad is None for p in denoiser.up.parameters())


def test_recomputed_activations_give_the_same_output_and_gradients(make_denoiser):
    y, t = torch.randn(2, 1, 32, 32), torch.tensor([3, 40])
    found = []
    for recompute in (False, True):
        denoiser = make_denoiser(dropout=0.3).train()
        denoiser.recompute = recompute
        torch.manual_seed(1)
        out = denoiser(y, t, Condition.unknown(2))
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad for p in denoiser.parameters() if p.grad is not None)])
    assert len(found[0]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
