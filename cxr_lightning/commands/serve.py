"""`cxr serve`: a generator product behind an HTTP endpoint."""

from importlib import import_module
from pathlib import Path

from cxr_lightning.data.text_encoder import check_text_encoder
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.errors import UserError
from cxr_lightning.hub import find_product
from cxr_lightning.ranges import check_range
from cxr_lightning.synthesis.devices import choose_devices, find_rank


def serve(
    model: Path | str,
    host: str = "127.0.0.1",
    port: int = 8080,
    most: int = 64,
    batch_size: int = 64,
    text_encoder: Path | None = None,
    device: str = "auto",
    revision: str | None = None,
) -> None:
    """Answers requests for synthetic radiographs over HTTP, until it is stopped.

    POST /invocations with {"request": "pneumonia", "count": 4, "seed": 0} and any option of
    Generator.generate; the header Accept chooses application/json (PNG files in base64),
    application/zip or image/png (one sheet). GET / tells of the model, GET /docs lets you try, GET
    /ping says that it is there. The images are those of `cxr generate` with the same request and
    seed. A mistake is answered by {"error": one sentence} and status 422. One request is worked on
    at a time. There is no password: what is to be open to others belongs behind a gateway.

    Args:
        model: Product of stage 2, 4 or 5: its folder, or its name on the Hugging Face Hub
            (org/name).
        host: Address to listen at; 0.0.0.0 for all of this machine's.
        port: Port to listen at.
        most: Images of a request, at most.
        batch_size: Images made at once.
        text_encoder: For a model that was trained with one: the folder of the same text encoder, so
            that side and severity of prompts are followed too.
        device: cpu, cuda, cuda:1, ..., or auto.
        revision: Branch, tag or commit of a model on the Hub.

    Raises:
        UserError: If an argument does not fit, FastAPI is not installed, or the port is taken.
    """
    check_range("port", port, 1, 65535)
    check_range("most", most, 1)
    check_range("batch_size", batch_size, 1)
    try:
        uvicorn = import_module("uvicorn")
        endpoint = import_module("cxr_lightning.commands.endpoint")
    except ImportError as error:
        raise UserError(
            f"serve: FastAPI and uvicorn are needed and not there ({error}); run pip install "
            "'cxr_lightning[serve]'."
        ) from error
    (place,) = choose_devices(device, 1, find_rank())
    source = find_product(model, "model", revision)
    generator = Generator.from_pretrained(source.folder, "model").to(place)
    if text_encoder is not None:
        check_text_encoder(text_encoder, generator.text_encoder, "text_encoder")
    texts = None if text_encoder is None else str(text_encoder)
    app = endpoint.make_app(generator, most, batch_size, texts)
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="info"))
    try:
        server.run()
    except SystemExit as error:  # uvicorn says why on its log, and exits with 1
        raise UserError(
            f"port: {host}:{port} cannot be listened at; choose another --port or --host."
        ) from error
