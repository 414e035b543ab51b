"""Text encoder: reports and prompts as vectors."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from text_model import write_text_model

from cxr_lightning.data import text_encoder
from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.data.prepared import open_prepared
from cxr_lightning.data.text_encoder import TextEncoder, check_text_encoder, report_embeddings
from cxr_lightning.errors import UserError

pytest.importorskip("sentence_transformers")
TEXTS = ["Small left pleural effusion.", "No pneumothorax", "large right effusion"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("text") / "model")


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared set, to keep embeddings in."""
    return Path(shutil.copytree(prepared, tmp_path / "data"))


def test_an_embedding_is_the_mean_over_tokens_at_length_1(model: Path) -> None:
    """Against transformers itself, text by text and so without padding."""
    from transformers import AutoModel, AutoTokenizer

    encoder = TextEncoder(model, "text")
    found = encoder.encode(TEXTS)
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model)
    for text, row in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            states = network.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = torch.nn.functional.normalize(states.mean(0), dim=0)
        assert torch.allclose(row, expected, atol=1e-5)
    assert encoder.dimension == found.shape[1] == 12


def test_a_text_without_a_letter_is_none(model: Path) -> None:
    found = TextEncoder(model, "text").encode(["", " - 5", *TEXTS])
    assert not found[:2].any()
    assert torch.allclose(found[2:].norm(dim=1), torch.ones(3))


def test_reports_are_embedded_once_and_kept(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, prepared = TextEncoder(model, "text"), open_prepared(data)
    found = report_embeddings(prepared, encoder)
    reports = prepared.table["report"].fillna("").tolist()
    assert torch.allclose(found, encoder.encode(reports), atol=1e-5)
    monkeypatch.setattr(encoder, "encode", None)
    assert torch.equal(report_embeddings(prepared, encoder), found)
    assert open_prepared(data, verify=True).sha256 == prepared.sha256


def test_other_reports_or_another_encoder_are_embedded_anew(
    model: Path, data: Path, tmp_path: Path
) -> None:
    prepared = open_prepared(data)
    first = report_embeddings(prepared, TextEncoder(model, "text"))
    kept = TextEncoder(model, "text")
    report_embeddings(prepared, kept)
    assert "model" not in vars(kept)  # it was not read
    other = TextEncoder(write_text_model(tmp_path / "other", seed=1), "text")
    assert not torch.allclose(report_embeddings(prepared, other), first, atol=1e-2)
    prepared.table.loc[0, "report"] = "large bilateral effusions"
    changed = report_embeddings(prepared, TextEncoder(model, "text"))
    assert not torch.allclose(changed[0], first[0], atol=1e-3)
    assert torch.allclose(changed[1:], first[1:], atol=1e-5)


def test_a_folder_that_cannot_be_written_to(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(text_encoder.os, "access", lambda *_: False)
    found = report_embeddings(open_prepared(data), TextEncoder(model, "text"))
    assert found.shape[1] == 12
    assert "not kept" in capsys.readouterr().out
    assert not list(data.glob("text-*"))


def test_the_data_module_adds_the_reports_to_the_conditions(model: Path, data: Path) -> None:
    module = CheXpertDataModule(data, batch_size=4, image_size=32, text_encoder=model)
    module.setup()
    batch = next(iter(module.train_dataloader()))
    reports = module.prepared.table["report"].fillna("")
    wanted = TextEncoder(model, "text").encode(reports.iloc[batch.index.numpy()].tolist())
    assert torch.allclose(batch.condition.text, wanted, atol=1e-5)


def test_no_reports(model: Path, data: Path) -> None:
    prepared = open_prepared(data)
    del prepared.table["report"]
    with pytest.raises(UserError, match=r"data\.text_encoder: .* has no reports"):
        report_embeddings(prepared, TextEncoder(model, "text"))


def test_no_folder_no_model_and_no_library(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="text: there is no folder"):
        TextEncoder(tmp_path / "absent", "text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="text: the model in .* cannot be read"):
        TextEncoder(tmp_path / "empty", "text").encode(["a"])
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"pip install 'cxr_lightning\[text\]'"):
        assert TextEncoder(model, "text").dimension


def test_only_the_encoder_that_a_product_was_trained_with(model: Path, tmp_path: Path) -> None:
    encoder = check_text_encoder(model, TextEncoder(model, "text").sha256, "text")
    assert encoder is not None
    assert np.isclose(float(encoder.encode(["left"]).norm()), 1.0)
    assert check_text_encoder(None, None, "text") is None
    with pytest.raises(UserError, match="without a text encoder"):
        check_text_encoder(model, None, "text")
    other = write_text_model(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="another text encoder"):
        check_text_encoder(other, encoder.sha256, "text")


def test_the_hash_is_that_of_the_files_wherever_they_lie(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    (copy / "README.md").write_text("notes")
    (copy / ".cache" / "huggingface").mkdir(parents=True)
    (copy / ".cache" / "huggingface" / "model.metadata").write_text("when it was downloaded")
    assert TextEncoder(copy, "text").sha256 == TextEncoder(model, "text").sha256
