"""What a request carries, within limits: a form with an image, or bytes. All of it stays in memory."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from medsd.preprocessing.notes import MAX_NOTE
from medsd.rest.refused import RefusedError
from medsd.strict import Strict

_BESIDE = 1 << 20  # bytes of a form beside its image; the longest note has up to 80,000
_FORM = "Send a form (multipart/form-data) with an image as its file, and note, k and coverage as fields."


@dataclass(frozen=True)
class RequestLimits:
    """What the server takes in.

    Attributes:
        image_bytes: of one image, or of the tensors of one request.
        requests: with a body, at once; so many bodies may be in memory.
        body_s: seconds that a body may take to arrive.
    """

    image_bytes: int = 128 << 20
    requests: int = 32
    body_s: float = 60.0


class FormFields(Strict):
    """The fields of the form beside its file."""

    note: str = Field("", max_length=MAX_NOTE, description="the clinical note, without names")
    k: int = Field(0, ge=0, le=100, description="how many similar cases the answer tells of")
    coverage: float | None = Field(
        None, gt=0, lt=1, description="conformal calls that hold the truth in this share; else operating points"
    )


async def read_form(request: Request, limits: RequestLimits) -> tuple[bytes | None, FormFields]:
    """The image, None where there is none, and what is asked of it.

    Raises:
        RefusedError: no form, one of other fields, or more than the limits.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise RefusedError(415, _FORM)
    if options.get(b"charset", b"utf-8").lower() != b"utf-8":  # some of Python's codecs take hours for a megabyte
        raise RefusedError(415, "The words of a form are UTF-8.")
    form = await _parsed(request, limits)
    fields: dict[str, Any] = dict(form)
    file = fields.pop("file", None)
    named_once = len(form.multi_items()) == len(form)
    if not named_once or isinstance(file, str) or any(isinstance(value, UploadFile) for value in fields.values()):
        raise RefusedError(422, _FORM)
    try:
        asked = FormFields.model_validate(fields)
    except ValidationError as error:
        raise RefusedError(422, sentence_of(error, _FORM)) from None
    content = None if file is None else await file.read()
    if content is not None and len(content) > limits.image_bytes:
        raise _too_large(limits)
    return content, asked


async def read_bytes(request: Request, limits: RequestLimits) -> bytes:
    """The body as it is; errors as `read_form`."""
    async with _in_time(limits):
        return b"".join([chunk async for chunk in _bounded(request, limits)])


def sentence_of(error: ValidationError, usage: str) -> str:
    """What is wrong with a field, without its value; `usage` where there is a field too many."""
    first = error.errors(include_input=False, include_url=False)[0]
    if first["type"] == "extra_forbidden":  # its name is the sender's
        return usage
    place, said = ".".join(map(str, first["loc"])), first["msg"]
    return f"{place}: {said[0].lower()}{said[1:]}." if place else f"{said}."


class _InMemoryParser(MultiPartParser):
    spool_max_size = 0  # never to disk


async def _parsed(request: Request, limits: RequestLimits) -> FormData:
    parser = _InMemoryParser(
        request.headers, _bounded(request, limits), max_files=1, max_fields=3, max_part_size=_BESIDE
    )
    try:
        async with _in_time(limits):
            return await parser.parse()
    except MultiPartException:  # its message may quote what was sent
        raise RefusedError(422, _FORM) from None


@asynccontextmanager
async def _in_time(limits: RequestLimits) -> AsyncGenerator[None, None]:
    """Refuse a body that takes longer to arrive than it may, or never does."""
    try:
        async with asyncio.timeout(limits.body_s):
            yield
    except TimeoutError:
        raise RefusedError(408, f"The request did not arrive within {limits.body_s:g} seconds.") from None
    except ClientDisconnect:
        raise RefusedError(400, "The request ended before it was whole.") from None


async def _bounded(request: Request, limits: RequestLimits) -> AsyncGenerator[bytes, None]:
    most, declared, size = limits.image_bytes + _BESIDE, request.headers.get("content-length", ""), 0
    if declared.isdigit() and int(declared) > most:
        raise _too_large(limits)
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise _too_large(limits)
        yield chunk


def _too_large(limits: RequestLimits) -> RefusedError:
    return RefusedError(413, f"This has more than {limits.image_bytes / 2**20:g} MB, the most that is taken.")
