"""What a request carries, within limits: a form with an image, or bytes. All of it stays in memory."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from medsd.connection import PieceSink, Sink
from medsd.preprocessing.memory_file import MemoryFile
from medsd.preprocessing.notes import MAX_NOTE
from medsd.rest.refused import RefusedError
from medsd.strict import Strict

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_BESIDE = 1 << 20  # bytes of a form beside its image; the longest note has up to 80,000
IMAGE_TYPES = ("application/dicom", "image/png", "image/jpeg")
_A_FORM = "a form (multipart/form-data) with an image as its file, and note, k and coverage as fields."
_FORM, _STUDY = f"Send {_A_FORM}", f"Send an image as it is, with k and coverage in the query, or {_A_FORM}"
_WORDS = "The words of a form are UTF-8."


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


class ImageFields(Strict):
    """What is asked of an image."""

    k: int = Field(0, ge=0, le=100, description="how many similar cases the answer tells of")
    coverage: float | None = Field(
        None, gt=0, lt=1, description="conformal calls that hold the truth in this share; else operating points"
    )


class FormFields(ImageFields):
    """The fields of the form beside its file."""

    note: str = Field("", max_length=MAX_NOTE, description="the clinical note, without names")


async def read_study(request: Request, limits: RequestLimits) -> tuple[MemoryFile | None, FormFields]:
    """The image, None where there is none, and what is asked of it.

    Raises:
        RefusedError: no image and no form, other fields, or more than the limits.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind.decode("latin-1") in IMAGE_TYPES:
        return await _read_image(request, limits)
    if kind != b"multipart/form-data":
        raise RefusedError(415, _STUDY)
    if options.get(b"charset", b"utf-8").lower() != b"utf-8":  # some of Python's codecs take hours for a megabyte
        raise RefusedError(415, _WORDS)
    if b"boundary" not in options or request.query_params:
        raise RefusedError(422, _FORM)
    form = _Form(limits)
    try:
        parser = MultipartParser(options[b"boundary"], form.callbacks())
        await _take_in(request, limits, parser.write)
    except FormParserError:  # its message may quote what was sent
        raise RefusedError(422, _FORM) from None
    return form.file, form.fields()


async def _read_image(request: Request, limits: RequestLimits) -> tuple[MemoryFile, FormFields]:
    """A body that is the image itself."""
    query = request.query_params
    if len(query) < len(query.multi_items()):
        raise RefusedError(422, _STUDY)
    try:
        asked = ImageFields.model_validate(dict(query))  # no note: an address is written into logs on its way
    except ValidationError as error:
        raise RefusedError(422, sentence_of(error, _STUDY)) from None
    file = MemoryFile(_declared(request, limits, 0))
    await _take_in(request, limits, file.write, file, beside=0)
    return file, FormFields(**asked.model_dump())


async def read_bytes(request: Request, limits: RequestLimits) -> bytes:
    """The body as it is; errors as `read_study`."""
    pieces: list[bytes] = []
    await _take_in(request, limits, lambda piece: pieces.append(bytes(piece)))
    return b"".join(pieces)


def sentence_of(error: ValidationError, usage: str) -> str:
    """What is wrong with a field, without its value; `usage` where there is a field too many."""
    first = error.errors(include_input=False, include_url=False)[0]
    if first["type"] == "extra_forbidden":  # its name is the sender's
        return usage
    place, said = ".".join(map(str, first["loc"])), first["msg"]
    return f"{place}: {said[0].lower()}{said[1:]}." if place else f"{said}."


class _Form:
    """A form as it arrives: words, and at most one file."""

    def __init__(self, limits: RequestLimits) -> None:
        self.file: MemoryFile | None = None
        self._words: dict[str, bytearray] = {}
        self._limits, self._ended = limits, False
        self._into: bytearray | MemoryFile = bytearray()  # what the data of the part go to
        self._name, self._value, self._disposition = bytearray(), bytearray(), b""

    def callbacks(self) -> "MultipartCallbacks":
        """What the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add,
            "on_end": self._end,
        }

    def fields(self) -> FormFields:
        """The fields beside the file."""
        if not self._ended:
            raise RefusedError(422, _FORM)
        try:
            return FormFields.model_validate({name: word.decode() for name, word in self._words.items()})
        except UnicodeDecodeError:
            raise RefusedError(415, _WORDS) from None
        except ValidationError as error:
            raise RefusedError(422, sentence_of(error, _FORM)) from None

    def _begin(self) -> None:
        self._disposition = b""

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        """Begin a part that has a known name, for the first time, and is a file where it should be one."""
        options = parse_options_header(self._disposition)[1]
        name, is_file = options.get(b"name", b"").decode("latin-1"), b"filename" in options
        if name == "file" and is_file and self.file is None:
            self.file = self._into = MemoryFile()
        elif name in FormFields.model_fields and not is_file and name not in self._words:
            self._into = self._words[name] = bytearray()
        else:
            raise RefusedError(422, _FORM)

    def _add(self, data: bytes, start: int, end: int) -> None:
        if isinstance(self._into, bytearray):
            self._into += data[start:end]
            if len(self._into) > _BESIDE:
                raise RefusedError(422, _FORM)
        else:
            self._into.write(memoryview(data)[start:end])
            if self._into.size > self._limits.image_bytes:
                raise _too_large(self._limits)

    def _end(self) -> None:
        self._ended = True


async def _take_in(
    request: Request,
    limits: RequestLimits,
    write: Callable[[bytes], object],
    sink: Sink | None = None,
    beside: int = _BESIDE,
) -> None:
    """Hand the body to `write` as it arrives, within the limits; what can be, goes to `sink` where one is given."""
    most, size = limits.image_bytes + beside, 0
    _declared(request, limits, beside)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RefusedError(415, "Compressed requests are not read.")
    refusal: Exception | None = None

    def take(piece: bytes) -> None:
        nonlocal size, refusal
        if refusal is not None:  # it was raised to `Connection` before
            raise refusal
        try:
            size += len(piece)
            if size > most:
                raise _too_large(limits)
            write(piece)
        except Exception as error:
            refusal = error
            raise

    sink = sink or PieceSink(take)
    try:
        async with _in_time(limits):
            async for piece in request.stream():
                take(piece)
                request.state.sink = sink
    finally:
        request.state.sink = refusal = None  # an error that its own frames know would keep the body in memory


def _declared(request: Request, limits: RequestLimits, beside: int) -> int:
    """The length that a body is said to have, 0 where it is not."""
    length = int(request.headers.get("content-length", 0))
    if length > limits.image_bytes + beside:
        raise _too_large(limits)
    return length


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


def _too_large(limits: RequestLimits) -> RefusedError:
    return RefusedError(413, f"This has more than {limits.image_bytes / 2**20:g} MB, the most that is taken.")
