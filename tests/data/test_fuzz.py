"""Damaged images and tables: nothing crashes, nothing is lost in silence."""

import os
import struct
import zlib
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_lightning.cli import main
from cxr_lightning.commands.prepare import prepare
from cxr_lightning.data.prepared import open_prepared, read_failures
from cxr_lightning.data.sources.base import COLUMNS
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS

SIZE = 16
DAMAGED, GOOD, TABLES = 500, 60, 200


def encode(pixels, kind, **options):
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def radiograph(rng, side=40):
    """Random pixels whose mean tells them apart after the resize."""
    return rng.integers(0, 256, (side, side), dtype=np.uint8)


def png_of_size(width, height):
    """A PNG that states a size and holds next to nothing: a decompression bomb."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def truncated(rng, content):
    return content[: rng.integers(1, len(content) - 20)]


def flipped(rng, content):
    """Some bits turned, anywhere."""
    damaged = np.frombuffer(content, dtype=np.uint8).copy()
    places = rng.integers(0, len(damaged), rng.integers(1, 30))
    damaged[places] ^= rng.integers(1, 256, len(places)).astype(np.uint8)
    return damaged.tobytes()


def zeroed(rng, content):
    start = rng.integers(0, len(content) // 2)
    return content[:start] + bytes(len(content) // 3) + content[start + len(content) // 3 :]


def garbage(rng, content):
    return rng.bytes(len(content))


DAMAGES = [truncated, flipped, zeroed, garbage, lambda rng, content: b""]


def write_damaged(folder, number, rng):
    """One damaged file, or a path that is none; returns its name."""
    name = f"damaged{number}.png"
    content = encode(radiograph(rng), ("PNG", "JPEG", "GIF", "TIFF", "BMP")[number % 5])
    special = number % 50
    if special == 0:
        (folder / name).write_bytes(png_of_size(60_000, 60_000))
    elif special == 1:
        (folder / name).symlink_to(name)  # a loop of one
    elif special == 2:
        (folder / name).mkdir()
    elif special == 3:
        return "x" * 300 + f"{number}.png"
    elif special == 4:
        return f"absent/{number}\x00.png"
    elif special == 5:
        os.mkfifo(folder / name)
    elif special == 6:
        (folder / name).write_bytes(b"GIF89a" + png_of_size(30, 30)[6:])
    else:
        damage = DAMAGES[number // 5 % len(DAMAGES)]
        (folder / name).write_bytes(damage(rng, content))
    return name


def write_good(folder, number, rng):
    """A file that is unusual but whole; returns its name and its grey values."""
    pixels = radiograph(rng, SIZE)  # of the size wanted: it must come back as it is
    name, kind, options = f"good{number}.png", "PNG", {}
    content = None
    match number % 6:
        case 0:  # a JPEG has other pixels; a wrong extension must not matter
            name = f"good{number}.jpg"
        case 1:
            content = encode(pixels.astype(np.uint16) * 257, "PNG")
        case 2:
            frames = [Image.fromarray(255 - pixels)] * 2
            options = {"save_all": True, "append_images": frames}
            kind, name = "GIF", f"good{number}.gif"
        case 3:
            name = f"größe {number} 胸部X線, (copy).png"
        case 4:
            grey = Image.fromarray(pixels)
            black = Image.new("L", grey.size)
            stream = BytesIO()
            Image.merge("CMYK", [black, black, black, Image.eval(grey, lambda v: 255 - v)]).save(
                stream, "TIFF"
            )
            content = stream.getvalue()
        case 5:
            name = f"{'n' * 200}{number}.png"
    (folder / name).write_bytes(content or encode(pixels, kind, **options))
    return name, pixels


def write_list(root, names):
    table = pd.DataFrame({"Path": names, "Edema": "1", "split": "train"})
    table.to_csv(root / "list.csv", index=False)


def test_500_damaged_files_among_good_ones(tmp_path, capsys):
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    root.mkdir()
    damaged = [write_damaged(root, number, rng) for number in range(DAMAGED)]
    good = dict(write_good(root, number, rng) for number in range(GOOD))
    names = rng.permutation([*damaged, *good]).tolist()
    write_list(root, names)
    out = tmp_path / "out"
    main(["prepare", "--source=folder", f"--root={root}", f"--out={out}", f"--size={SIZE}"])
    data, failures = open_prepared(out, verify=True), read_failures(out)
    said = capsys.readouterr()
    assert f"{len(failures)} failures, see" in said.out
    assert said.err == ""  # no decoder's chatter
    # Every file is here or there, once, and whatever failed says why.
    said = [name.replace("\x00", "\ufffd") for name in names]
    assert sorted([*data.table["Path"], *failures["Path"]]) == sorted(said)
    assert failures["reason"].str.len().gt(5).all()
    assert not set(failures["Path"]) & set(good)
    rows = {path: row for row, path in enumerate(data.table["Path"])}
    for name, pixels in good.items():
        assert np.array_equal(data.images[rows[name]], pixels), name
    # Changed bytes within may leave a picture that decodes; everything else is found.
    for name in set(rows) - set(good):
        damage = DAMAGES[int(name[len("damaged") : -len(".png")]) // 5 % len(DAMAGES)]
        assert damage in (flipped, zeroed), (name, damage)
    reasons = dict(zip(failures["Path"], failures["reason"], strict=True))
    assert "DecompressionBomb" in reasons["damaged0.png"]
    assert "symbolic links" in reasons["damaged1.png"]
    assert reasons["damaged2.png"] == reasons["damaged5.png"] == "no such file"
    assert "too long" in reasons["x" * 300 + "3.png"]
    with pytest.raises(SystemExit) as stop:  # the same set, strictly
        main(
            [
                "prepare",
                "--source=folder",
                f"--root={root}",
                f"--out={out}",
                "--size=16",
                "--strict",
            ]
        )
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert f"strict: {len(failures)} of {len(names)} images were left out" in said
    assert said.count("\n") == 1


PATIENTS = 12


def write_chexpert(root):
    lines = [",".join(COLUMNS)]
    for number in range(PATIENTS):
        path = f"train/patient{number:05d}/study1/view1_frontal.png"
        (root / path).parent.mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 20 * number, dtype=np.uint8)).save(root / path)
        labels = ["1.0", "", "0.0", "-1.0"] * 3 + ["", "1.0"]
        lines.append(",".join([f"{root.name}/{path}", "Male", "40", "Frontal", "AP", *labels]))
    return "\n".join(lines) + "\n"


def mangle(rng, lines):
    """Damages one line of a CSV file; returns the file's bytes and that line's number."""
    lines = [line.encode() for line in lines]
    number = int(rng.integers(0, len(lines)))
    line = lines[number]
    cut = int(rng.integers(0, len(line)))
    lines[number] = [
        lambda: line[:cut],
        lambda: line[:cut] + b'"' + line[cut:],
        lambda: line[:cut] + b"," * int(rng.integers(1, 4)) + line[cut:],
        lambda: line[:cut] + bytes([int(rng.integers(0, 256))]) + line[cut + 1 :],
        lambda: line[:cut] + b"\x00" + line[cut:],
        lambda: line + b"\n" + line,
        lambda: line[:cut] + b"\n" + line[cut:],
        lambda: line.replace(b",", b";"),
        lambda: line.replace(b"1.0", b"yes"),
        lambda: line.replace(b"40", b"forty"),
        lambda: line.replace(b"patient", b"p"),
        lambda: line.replace(b"Male", "Männlich".encode("latin-1")),
        lambda: b"x" * 100_000 + line,
        lambda: line[::-1],
        lambda: b"\xef\xbb\xbf" + line,
        lambda: line + b"\r",
    ][int(rng.integers(0, 16))]()
    return b"\n".join(lines) + b"\n", number


@pytest.mark.slow
def test_200_damaged_tables(tmp_path, capsys):
    root = tmp_path / "set"
    lines = write_chexpert(root).splitlines()
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    prepare("chexpert", root, tmp_path / "whole", SIZE, workers=1)
    whole = open_prepared(tmp_path / "whole").table.set_index("Path")
    outcomes = {"whole": 0, "failures": 0, "refused": 0}
    for seed in range(TABLES):
        content, number = mangle(np.random.default_rng(seed), lines)
        (root / "train.csv").write_bytes(content)
        out = tmp_path / f"out{seed}"
        refusal = None
        try:
            prepare("chexpert", root, out, SIZE, workers=1)
        except UserError as error:
            refusal = str(error)
        if refusal is not None:
            assert "\n" not in refusal
            assert str(root) in refusal
            assert not out.exists()
            outcomes["refused"] += 1
            continue
        assert number > 0 or content.startswith((lines[0].encode(), b"\xef\xbb\xbf"))
        table, failures = open_prepared(out).table.set_index("Path"), read_failures(out)
        untouched = whole.drop(index=whole.index[number - 1]) if number else whole
        if not failures["reason"].str.contains("cells where the header").any():
            # No row swallowed another: all others are here with their labels.
            compared = [*OBSERVATIONS, "Age", "patient", "AP/PA"]
            pd.testing.assert_frame_equal(table.loc[untouched.index, compared], untouched[compared])
        assert len(table) + len(failures) >= PATIENTS - 1
        outcomes["failures" if len(failures) else "whole"] += 1
    capsys.readouterr()
    # All three happen often; the seeds are fixed.
    assert min(outcomes.values()) >= 15, outcomes
