"""That each contestant reads what it should; how fast is for the benchmark itself."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cxr_lightning.cli import main
from cxr_lightning.commands.benchmark_data import (
    CHUNK,
    PlainFiles,
    find_images,
    images_per_second,
    measure_in_turn,
    prepare_pass,
    save_images,
)
from cxr_lightning.data.prepared import open_prepared
from cxr_lightning.data.transforms import to_model
from cxr_lightning.errors import UserError

LIMITS = {"gather", "stream", "copy"}


def benchmark(prepared, capsys, *args):
    main(["benchmark", "--data", str(prepared), *args, "--rounds=2", "--seconds=0.02"])
    return json.loads(capsys.readouterr().out)


def test_figures_of_a_prepared_set(prepared, capsys):
    result = benchmark(prepared, capsys, "--batch_size=8")
    speeds = result["images_per_second"]
    assert set(speeds) == {"loader", "loader_float", "resident_float", "plain_float", *LIMITS}
    assert min(speeds.values()) > 0
    for name, (low, high) in result["range"].items():
        assert low <= speeds[name] <= high
    assert result["plain"] == "PNG files of that size, 0 workers"
    ratio = speeds["loader"] / speeds["gather"]
    assert result["loader_to_gather"] == pytest.approx(ratio, rel=0.01)


def test_originals(prepared, tmp_path, capsys):
    for i in range(3):
        Image.fromarray(np.full((50, 40), 90 + i, dtype=np.uint8)).save(tmp_path / f"{i}.jpg")
    result = benchmark(prepared, capsys, f"--files={tmp_path}", "--batch_size=4")
    assert "prepare with 1 process" in result["images_per_second"]
    assert result["plain"].startswith("originals")


def test_plain_files_are_the_prepared_images(prepared, tmp_path):
    data = open_prepared(prepared)
    plain = PlainFiles(save_images(data, tmp_path), data.size)
    assert len(plain) == len(data.images)
    expected = to_model(torch.from_numpy(np.array(data.images[5])))
    assert torch.equal(plain[5][0], expected)
    assert PlainFiles(plain.paths, 16)[0].shape == (1, 16, 16)


def test_passes_are_repeated_until_the_time_is_over():
    passes = []

    def one_pass():
        passes.append(1)
        yield from (4, 4)

    assert images_per_second(one_pass, 0.01) > 0
    assert len(passes) > 1


def test_contestants_take_turns():
    order = []
    passes = {name: lambda name=name: order.append(name) or [1] * 10**6 for name in "ab"}
    speeds = measure_in_turn(passes, 3, 0.001)
    assert [len(values) for values in speeds.values()] == [3, 3]
    assert order == ["a", "b"] * 3


def test_reading_counts_every_image(tmp_path):
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(tmp_path / "a.png")
    one_pass = prepare_pass(find_images(tmp_path), 8, 1)
    batches = iter(one_pass())
    assert [next(batches) for _ in range(3)] == [CHUNK] * 3


def test_mistakes(prepared, tmp_path, capsys):
    for args, message in (
        (["--data", str(tmp_path)], "no prepared data set"),
        (["--data", str(prepared), "--files", str(tmp_path)], "files: no PNG or JPEG file"),
        (["--data", str(prepared), "--rounds=0"], "rounds: 0"),
        (["--data", str(prepared), "--seconds=0"], "seconds"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["benchmark", *args])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="files: no PNG"):
        find_images(tmp_path)
