"""Names, the values of --extractor, packages that are absent or not imported yet."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from cxr_lightning.artifacts import load_network, save_product
from cxr_lightning.errors import UserError
from cxr_lightning.metrics import extractors
from cxr_lightning.metrics.extractors import build_extractor, build_extractors, extractor_names
from cxr_lightning.networks.encoder import Encoder


@pytest.fixture
def modules(tmp_path: Path, make_module: Callable[[Path, int], nn.Module]) -> Path:
    """A folder with the modules a.pt, b.pt and other/a.pt, all different."""
    (tmp_path / "other").mkdir()
    for path, channels in (("a.pt", 1), ("b.pt", 3)):
        make_module(tmp_path / path, channels)
    (tmp_path / "other/a.pt").write_bytes((tmp_path / "b.pt").read_bytes())
    make_module(tmp_path / "b.pt", 1)
    return tmp_path


def test_names() -> None:
    assert extractor_names() == ("inception", "xrv", "rad_dino", "encoder", "module", "fixed")
    with pytest.raises(UserError, match=r"^extractor: 'raddino' is not an .*; use one of inc.*\.$"):
        build_extractor("raddino")


def test_values_of_the_command_line(products: Path, modules: Path) -> None:
    encoder = products / "encoder"
    built = build_extractors([f"module={modules}/a.pt", "encoder", "fixed"], encoder)
    assert [extractor.name for extractor in built] == ["module", "encoder", "fixed"]
    assert [extractor.num_features for extractor in built] == [5, 8, 64]
    (named,) = build_extractors([f"encoder={encoder}"])
    assert named.sha256 == built[1].sha256
    assert build_extractors([]) == []


def test_home_is_expanded(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(modules))  # the shell does not expand module=~/a.pt
    assert build_extractors(["module=~/a.pt"])[0].num_features == 5


def test_distinct_names(modules: Path) -> None:
    one, other = build_extractors([f"module={modules}/a.pt", f"module={modules}/other/a.pt"])
    assert one.name == f"module:a:{one.sha256[:8]}"
    assert other.name == f"module:a:{other.sha256[:8]}"
    specs = [f"module={modules}/other/a.pt", "fixed", f"module={modules}/b.pt"]
    assert [e.name for e in build_extractors(specs)] == ["module:a", "fixed", "module:b"]


def test_encoders_are_called_by_their_runs(products: Path, tmp_path: Path) -> None:
    runs = [tmp_path / run / "product" for run in ("moco", "held")]
    for run, folder in enumerate(runs):
        encoder = load_network(Encoder, products / "encoder")
        next(encoder.parameters()).data.fill_(float(run))
        save_product(folder, "encoder", {"encoder": encoder}, {})
    built = build_extractors([f"encoder={folder}" for folder in runs])
    assert [extractor.name for extractor in built] == ["encoder:moco", "encoder:held"]


def test_twice_the_same(modules: Path) -> None:
    (modules / "copy.pt").write_bytes((modules / "a.pt").read_bytes())
    for specs in (["fixed", "fixed"], [f"module={modules}/a.pt", f"module={modules}/copy.pt"]):
        with pytest.raises(UserError, match=r"^extractor: '.*' is there twice; .*\.$"):
            build_extractors(specs)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing", "'nothing' is not an extractor"),
        ("", "'' is not an extractor"),
        ("inception=", "'inception=' names no weights; give inception=PATH or inception alone"),
        ("encoder", "the encoder extractor needs an encoder product"),
        ("encoder=absent", "no product at absent"),
        ("inception=absent", "no Inception weights at 'absent'"),
        ("xrv=absent", "no TorchXRayVision weights at 'absent'"),
        ("rad_dino", "rad_dino needs the folder"),
        ("module=absent", "no file at 'absent'"),
        ("fixed=absent", "'absent' does not belong to the fixed extractor"),
    ],
)
def test_all_are_checked_before_one_is_loaded(
    spec: str, message: str, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(modules)
    monkeypatch.setattr("torch.jit.load", lambda *_, **__: pytest.fail("loaded too early"))
    with pytest.raises(UserError, match=f"^extractor: {message}.*[.]$"):
        build_extractors(["module=a.pt", spec])


@pytest.mark.parametrize(
    ("name", "package", "fixture"),
    [
        ("inception", "torch_fidelity", "inception_file"),
        ("xrv", "torchxrayvision", "xrv_file"),
        ("rad_dino", "transformers", "rad_dino_folder"),
    ],
)
def test_missing_package(
    name: str,
    package: str,
    fixture: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = request.getfixturevalue(fixture)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"^extractor: .*'pip install cxr_lightning\[{name}\]'"):
        build_extractor(name, weights)


def test_libraries_are_not_imported_before_they_are_needed() -> None:
    heavy = ("lightning", "torchvision", "torchmetrics", "transformers", "torchxrayvision")
    program = (
        f"import sys, {extractors.__name__} as extractors\n"
        "extractors.build_extractor('fixed')\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
