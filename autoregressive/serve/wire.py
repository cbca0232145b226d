"""What travels between a client and the server: the OpenAI images API, and what we add to it."""

import base64
import io
import json
import time
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autoregressive.models.generate import Sampling

IGNORED = ("quality", "style", "user", "background", "moderation", "output_compression")
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
SEEDS = 2**53 - 1  # the largest whole number that any client's JSON holds exactly


class Refusal(Exception):
    """An error that a client is told, as the API's error object."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None,
                 kind: str = "invalid_request_error", headers: dict[str, str] | None = None):  # fmt: skip
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Generation(BaseModel):
    """The body of POST /v1/images/generations. Types are taken as they are: "2" is no number."""

    model_config = ConfigDict(strict=True, extra="forbid")

    prompt: Annotated[str, Field(max_length=4000)] | int = Field(description="A class by name or number, or a caption.")
    model: str | None = None
    n: int | None = Field(None, ge=1, description="Pictures; default: 1.")
    size: str | None = Field(None, description='"auto": as the model draws, or larger ones such as "512x512".')
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3, description="With stream: previews of each picture, as rows "
                                       "finish.")  # fmt: skip
    # Ours.
    seed: int | None = Field(None, ge=0, le=SEEDS, description="The same pictures again; default: another each time.")
    cfg_scale: float | None = Field(None, ge=1, le=100, description="Scale of classifier-free guidance; 1: none.")
    cfg_interval: int | None = Field(None, ge=-1, description="Guide codes 0 to this number + 1 only; -1: all.")
    temperature: float | None = Field(None, ge=0, le=100, description="Divides the logits; 0: the most likely codes.")
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="Draw from so many most likely codes; 0: all.")
    top_p: float | None = Field(None, gt=0, le=1, description="Draw from the codes that hold this probability.")
    # Known to the API, and of no meaning here.
    quality: str | None = None
    style: str | None = None
    user: str | None = None
    background: str | None = None
    moderation: str | None = None
    output_compression: int | None = None

    @property
    def notes(self) -> list[str]:
        given = [name for name in IGNORED if getattr(self, name) is not None]
        given += ["partial_images, without stream"] if self.partial_images and not self.stream else []
        return [f"ignored: {', '.join(given)}"] if given else []

    def sampling(self, default: Sampling) -> Sampling:
        """With the server's settings for what is not said."""
        held = {name: getattr(self, name) for name in ("cfg_scale", "cfg_interval", "temperature", "top_k", "top_p")}
        return Sampling(**{**vars(default), **{name: value for name, value in held.items() if value is not None}})


def read(body: bytes) -> Generation:
    """Refusal of what is no request, naming the field."""
    try:
        return Generation.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        names = [str(part) for part in first["loc"] if str(part) in Generation.model_fields or first["loc"] == (part,)]
        param = names[0] if names else None
        what = param or "the body is no JSON object that can be read"
        raise Refusal(400, f"{what}: {first['msg']}", param) from error


def side_of(size: str | None, native: int) -> int:
    """The side in pixels that is asked for."""
    sides = [native, *(side for side in (128, 256, 384, 512, 768, 1024) if side > native)]
    choices = {"auto": native, **{f"{side}x{side}": side for side in sides}}
    if size is not None and size not in choices:
        raise Refusal(400, f"size: must be one of {', '.join(choices)}", "size")
    return choices[size or "auto"]


def encoded(picture: np.ndarray, kind: str) -> bytes:
    """uint8 [S, S, 3] as a file of this format."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, FORMATS[kind])
    return file.getvalue()


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def usage(prompt: int, codes: int) -> dict:
    return {"input_tokens": prompt, "output_tokens": codes, "total_tokens": prompt + codes,
            "input_tokens_details": {"text_tokens": prompt, "image_tokens": 0}}  # fmt: skip


def event_of_error(refusal: Refusal) -> bytes:
    return f"event: error\ndata: {json.dumps({'type': 'error', **refusal.body})}\n\n".encode()


def event(name: str, content: bytes, side: int, kind: str, **more) -> bytes:
    """A server-sent event of the images API; content: the picture's file."""
    body = {"type": f"image_generation.{name}", "b64_json": base64_of(content), "created_at": int(time.time()),
            "size": f"{side}x{side}", "quality": "auto", "background": "opaque", "output_format": kind,
            **more}  # fmt: skip
    return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n".encode()
