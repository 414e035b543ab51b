"""The HTTP endpoint of `cxr serve`: what it answers, without the server around it.

`GET /ping` and `POST /invocations` are what hosts of models ask for (Amazon SageMaker's contract
for containers); `GET /` tells of the model, `GET /docs` lets people try.
"""

import base64
import io
import json
import threading
import warnings
import zipfile
from typing import Any, Literal

import numpy as np
import torch
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from cxr_lightning import __version__
from cxr_lightning.data.prompt import Prompt, parse_request
from cxr_lightning.data.vocabulary import CONDITIONS
from cxr_lightning.data.writers.png import png_bytes, synthetic_note
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import SamplerName, Sampling, SamplingPrecision
from cxr_lightning.diffusion.spacing import Spacing
from cxr_lightning.diffusion.synthetic_images import SyntheticImages
from cxr_lightning.errors import UserError
from cxr_lightning.ranges import check_range

LONGEST = 2000
"""Characters of a request."""

UNPROCESSABLE = 422
"""Status of a request that cannot be followed."""


class Invocation(BaseModel):
    """What to draw; the arguments of `Generator.generate`."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"request": "pneumonia"}]}
    )

    request: str = Field(
        max_length=LONGEST,
        description='A health condition, such as "pneumonia+edema", or a prompt, such as '
        '"small left effusion, PA view, 60-year-old man".',
    )
    count: int = Field(1, description="Number of images.")
    seed: int = Field(0, description="Seed of the set.")
    first: int = Field(0, description="Number of the first image.")
    view: Literal["AP", "PA"] | None = Field(None, description="With a health condition.")
    sampler: SamplerName | None = None
    steps: int | None = Field(None, description="Denoising steps; default: 20, or the model's own.")
    guidance: float = Sampling.guidance
    guidance_interval: tuple[float, float] = Sampling.guidance_interval
    eta: float = Sampling.eta
    spacing: Spacing = Sampling.spacing
    start: float = Sampling.start
    precision: SamplingPrecision = Sampling.precision


def make_app(
    generator: Generator, most: int = 64, batch_size: int = 64, text_encoder: str | None = None
) -> FastAPI:
    """The application: one model, which draws for one request at a time.

    What does not draw is asynchronous, so that `/ping` is answered however many requests wait.

    Args:
        generator: The model, where it is to run.
        most: Images of a request at most.
        batch_size: Images made at once, at most `most`.
        text_encoder: Folder of the text encoder that the model was trained with, for prompts.
    """
    app = FastAPI(
        title="cxr_lightning",
        version=__version__,
        description="Synthetic chest X-rays of stated health conditions. Not for diagnosis.",
    )
    turn = threading.Lock()

    def draw(wanted: Invocation) -> tuple[SyntheticImages, list[str]]:
        check_range("count", wanted.count, 1, most)
        options = wanted.model_dump(exclude={"request"})
        request = parse_request(wanted.request)
        if isinstance(request, Prompt):
            options["text_encoder"] = text_encoder
        with turn, warnings.catch_warnings(record=True) as cautions:
            warnings.simplefilter("always")
            made = generator.generate(request, **options, batch_size=min(batch_size, most))
        return made, [str(caution.message) for caution in cautions]

    @app.get("/")
    async def about() -> dict[str, Any]:
        """Which model this is, and what it can be asked for."""
        own = generator.own_sampling or Sampling()
        return {
            "product_sha256": generator.manifest.get("sha256"),
            "image_size": generator.image_size,
            "conditions": [*CONDITIONS],
            "sampler": own.sampler,
            "steps": own.steps,
            "most_images": most,
            "device": str(generator.device),
            "note": "Synthetic images; not for diagnosis.",
        }

    @app.get("/ping")
    async def ping() -> dict[str, str]:
        """Whether the model is there."""
        return {"status": "ready"}

    @app.post(
        "/invocations",
        response_class=Response,
        responses={
            200: {"content": {"application/json": {}, "application/zip": {}, "image/png": {}}}
        },
    )
    async def invocations(wanted: Invocation, asked: Request) -> Response:
        """Synthetic images. The header Accept chooses the form.

        `application/json` (default): PNG files in base64, and what was understood;
        `application/zip`: PNG files with `request.json`; `image/png`: one sheet of all images.
        """
        made, cautions = await run_in_threadpool(draw, wanted)
        accepted = asked.headers.get("accept", "")
        facts = {**describe(made), "warnings": cautions}
        if "application/zip" in accepted:
            return Response(as_zip(made, facts), media_type="application/zip")
        if "image/png" in accepted:
            note = synthetic_note(made.product_sha256)
            sheet = png_bytes(np.asarray(made.grid()), note)
            return Response(sheet, media_type="image/png")
        encoded = [base64.b64encode(file).decode() for file in png_files(made).values()]
        return JSONResponse({**facts, "images": encoded})

    answer_mistakes(app)
    return app


def answer_mistakes(app: FastAPI) -> None:
    """One sentence for what goes wrong, in the place of a traceback or a list."""

    @app.exception_handler(UserError)
    async def mistake(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=UNPROCESSABLE)

    @app.exception_handler(RequestValidationError)
    async def misfit(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        text = f"{name}: {first['msg']}; see /docs."
        return JSONResponse({"error": text}, status_code=UNPROCESSABLE)

    @app.exception_handler(torch.OutOfMemoryError)
    async def too_many(_: Request, error: torch.OutOfMemoryError) -> JSONResponse:
        text = "count: so many images at once do not fit the GPU's memory; ask for fewer."
        return JSONResponse({"error": text}, status_code=507)


def describe(made: SyntheticImages) -> dict[str, Any]:
    """What was drawn, in plain values."""
    return {
        "product_sha256": made.product_sha256,
        "seed": made.seed,
        "numbers": list(made.numbers),
        "understood": None if made.prompt is None else made.prompt.describe(),
        "synthetic": True,
    }


def png_files(made: SyntheticImages) -> dict[str, bytes]:
    """PNG files by name; each says in its metadata that it is synthetic."""
    note = synthetic_note(made.product_sha256)
    numbered = zip(made.numbers, made.pixels, strict=True)
    return {f"{number:05d}.png": png_bytes(pixels, note) for number, pixels in numbered}


def as_zip(made: SyntheticImages, facts: dict[str, Any]) -> bytes:
    """The PNG files and `request.json` in one file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        for name, file in png_files(made).items():
            archive.writestr(name, file)
        archive.writestr("request.json", json.dumps(facts, indent=1) + "\n")
    return stream.getvalue()
