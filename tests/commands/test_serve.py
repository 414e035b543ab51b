"""`cxr serve`: what it answers, and what it refuses."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brightness_sets import SIZE, make_generator
from PIL import Image

from cxr_lightning.artifacts import product_sha256
from cxr_lightning.cli import main
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.synthetic_images import SyntheticImages

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from cxr_lightning.commands.endpoint import make_app


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    facts = {"training_images": {"Pneumonia": 5, "No Finding": 4000}}
    return make_generator(tmp_path_factory.mktemp("serve") / "generator", facts=facts)


@pytest.fixture(scope="module")
def generator(product: Path) -> Generator:
    return Generator.from_pretrained(product)


@pytest.fixture(scope="module")
def client(generator: Generator) -> TestClient:
    return TestClient(make_app(generator, most=4, batch_size=2))


def pixels(file: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as image:
        assert image.info["Synthetic"] == "yes"
        return np.asarray(image)


def test_images_are_those_of_the_generator(client: TestClient, generator: Generator) -> None:
    asked = {"request": "healthy", "count": 3, "seed": 5, "first": 2, "steps": 2, "view": "PA"}
    answer = client.post("/invocations", json=asked)
    assert answer.status_code == 200
    content = answer.json()
    expected = generator.generate(
        "healthy", 3, seed=5, first=2, steps=2, view="PA", batch_size=2
    ).pixels
    for file, image in zip(content["images"], expected, strict=True):
        assert np.array_equal(pixels(base64.b64decode(file)), image)
    assert content["numbers"] == [2, 3, 4]
    assert content["product_sha256"] == generator.manifest["sha256"]
    assert content["synthetic"] is True


def test_a_prompt_is_answered_with_what_was_understood_and_warned_of(client: TestClient) -> None:
    asked = {"request": "mild left pneumonia, 60-year-old man", "steps": 1}
    content = client.post("/invocations", json=asked).json()
    assert "Pneumonia" in content["understood"]
    assert any("Pneumonia" in warning for warning in content["warnings"])  # 5 images of it
    assert len(content["images"]) == 1


def test_zip_and_sheet(client: TestClient) -> None:
    asked = {"request": "healthy", "count": 2, "steps": 1}
    answer = client.post("/invocations", json=asked, headers={"Accept": "application/zip"})
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["00000.png", "00001.png", "request.json"]
        assert pixels(archive.read("00001.png")).shape == (SIZE, SIZE)
        assert json.loads(archive.read("request.json"))["seed"] == 0
    answer = client.post("/invocations", json=asked, headers={"Accept": "image/png"})
    assert pixels(answer.content).shape[1] > 2 * SIZE


def test_it_is_there_while_more_requests_wait_than_there_are_threads(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing, go_on, generate = threading.Event(), threading.Event(), generator.generate

    def slowly(*args: Any, **options: Any) -> SyntheticImages:
        drawing.set()
        go_on.wait(60)
        return generate(*args, **options)

    monkeypatch.setattr(generator, "generate", slowly)
    with TestClient(make_app(generator)) as client:

        def ask(_: int) -> int:
            asked = {"request": "healthy", "steps": 1}
            return client.post("/invocations", json=asked).status_code

        with ThreadPoolExecutor(60) as pool:  # the server has 40 threads
            answers = pool.map(ask, range(60))
            assert drawing.wait(60)
            time.sleep(0.5)
            with ThreadPoolExecutor(1) as other:
                ping = other.submit(lambda: client.get("/ping").status_code)
                try:
                    assert ping.result(timeout=30) == 200
                finally:
                    go_on.set()
            assert set(answers) == {200}


def test_it_tells_of_itself(client: TestClient, product: Path) -> None:
    about = client.get("/").json()
    assert about["product_sha256"] == product_sha256(product)
    assert (about["image_size"], about["most_images"]) == (SIZE, 4)
    assert "pleural_effusion" in about["conditions"]
    assert client.get("/ping").status_code == 200
    assert client.get("/openapi.json").json()["info"]["title"] == "cxr_lightning"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"request": "healthy", "count": 5}, "count: 5 is not possible; use 1 to 4."),
        ({"request": "healthy", "count": 0}, "count: 0 is not possible"),
        ({"request": "healthy", "steps": 1001}, "steps: 1001"),
        ({"request": "healthy+pneumonia"}, "contradicts itself"),
        ({"request": "qwertz"}, "prompt"),
        ({"request": "no effusion, large effusion"}, "effusion"),
        ({"request": "healthy", "seed": "x"}, "seed: Input should be a valid integer"),
        ({"request": "healthy", "stepz": 3}, "stepz: Extra inputs are not permitted"),
        ({"request": "a" * 3000}, "request: String should have at most 2000"),
        ({}, "request: Field required"),
    ],
)
def test_mistakes_are_one_sentence(
    client: TestClient, asked: dict[str, object], message: str
) -> None:
    answer = client.post("/invocations", json=asked)
    assert answer.status_code == 422
    content = answer.json()
    assert list(content) == ["error"]
    assert message in content["error"]
    assert "\n" not in content["error"]


def test_what_is_no_json_is_refused(client: TestClient) -> None:
    answer = client.post("/invocations", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "error" in answer.json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--port=0"], "port: 0 is not possible"),
        (["--most=0"], "most: 0 is not possible"),
        (["--model=/nowhere"], "model: no product at /nowhere"),
        (["--text_encoder=/nowhere"], "text_encoder"),
    ],
)
def test_wrong_arguments(
    product: Path, changes: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["serve", f"--model={product}", "--device=cpu", *changes])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_answers_and_a_second_one_is_refused_the_port(product: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cxr_lightning", "serve", f"--model={product}"]
    command += [f"--port={port}", "--device=cpu"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        place = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{place}/ping") as answer:
                    assert json.load(answer) == {"status": "ready"}
                break
            except OSError:
                assert server.poll() is None, server.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.2)
        body = json.dumps({"request": "pneumonia", "steps": 2}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{place}/invocations", body, headers)
        with urllib.request.urlopen(request) as answer:
            assert len(json.load(answer)["images"]) == 1
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 2
        assert f"port: 127.0.0.1:{port} cannot be listened at" in second.stderr
    finally:
        os.kill(server.pid, signal.SIGINT)
        server.communicate(timeout=60)
