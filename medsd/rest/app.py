"""The routes of the server and their description (OpenAPI); what stands before them is `medsd.rest.guard.RestGuard`."""

import asyncio
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPBearer
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from medsd import __version__
from medsd.rest import protocol
from medsd.rest.bodies import IMAGE_TYPES, FormFields, ImageFields, RequestLimits, read_bytes, read_study
from medsd.rest.engine import Engine
from medsd.rest.guard import answer_of
from medsd.rest.refused import RefusedError
from medsd.results.record import ReadingRecord
from medsd.results.result import DISCLAIMER
from medsd.strict import Strict

_UNKNOWN = {
    404: "There is nothing here; /openapi.json says what there is.",
    405: "This cannot be asked in this way; /openapi.json says how.",
}
_SCHEMAS = "#/components/schemas/{model}"


class Failure(Strict):
    """Why there is no answer, in one sentence."""

    error: str


def build_app(engine: Engine, limits: RequestLimits, *, tokens: bool) -> FastAPI:
    """The routes of a bundle; `tokens`: whether the description says that one is asked for."""
    asked_for = [Depends(HTTPBearer(auto_error=False))] if tokens else []
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # behind a proxy, it would lead from HTTPS to plain HTTP
        dependencies=asked_for,
        responses=_failures(401, 403, 404, 405, 421),
    )
    app.add_exception_handler(RefusedError, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(Exception, _refuse)
    _add_predictions(app, engine, limits)
    _add_protocol(app, engine, limits)

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(engine.status.page(), media_type=CONTENT_TYPE_LATEST)

    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def _add_predictions(app: FastAPI, engine: Engine, limits: RequestLimits) -> None:
    about: dict[int | str, dict[str, Any]] = {200: {"model": ReadingRecord, "description": "Scored, warned or refused"}}

    @app.post(
        "/v1/predictions",
        summary="What the model says of one image",
        responses=about | _failures(408, 413, 415, 422, 503),
        openapi_extra=_study(),
    )
    async def predict(request: Request) -> JSONResponse:
        """An image that must not be scored is an answer, too: its status is "refused", with reason and message."""
        return JSONResponse(await engine.read(read_study(request, limits)))


def _add_protocol(app: FastAPI, engine: Engine, limits: RequestLimits) -> None:
    about, said = engine.bundle.description, engine.session.outputs
    model = f"/v2/models/{about.name}"
    version = f"{model}/versions/{about.version}"

    @app.get("/v2", summary="About the server")
    async def server() -> dict[str, Any]:
        return {"name": "medsd", "version": __version__, "extensions": protocol.EXTENSIONS}

    @app.get("/v2/health/live", summary="Whether the server runs")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", summary="Whether the model is loaded")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.get(model, summary="Inputs and outputs of the graph")
    @app.get(version, include_in_schema=False)
    async def metadata() -> dict[str, Any]:
        return protocol.model_metadata(about, said)

    @app.get(f"{model}/ready", summary="Whether this model is loaded")
    @app.get(f"{version}/ready", include_in_schema=False)
    async def model_ready() -> dict[str, Any]:
        return {"name": about.name, "ready": True}

    content = {"application/json": {"schema": {"$ref": _SCHEMAS.format(model="InferRequest")}}}

    @app.post(
        f"{model}/infer",
        summary="The graph's outputs for tensors; no gate looks at them",
        responses=_failures(400, 408, 413, 415, 503),
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )
    @app.post(f"{version}/infer", include_in_schema=False)
    async def infer(request: Request) -> Response:
        body = await read_bytes(request, limits)
        length = request.headers.get(protocol.HEADER_LENGTH)
        asked, feeds = await asyncio.to_thread(protocol.read_request, body, length, about, said)
        outputs = await engine.infer(feeds, body)
        return await asyncio.to_thread(protocol.answer, asked, outputs, about)


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Failure} for status in statuses}


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        sentence = _UNKNOWN.get(error.status_code, "This request cannot be answered.")
        return answer_of(RefusedError(error.status_code, sentence, error.headers))
    return answer_of(error)


def _study() -> dict[str, Any]:
    binary = {"type": "string", "format": "binary"}
    form, alone = FormFields.model_json_schema(), ImageFields.model_json_schema()["properties"]
    file = binary | {"description": "DICOM, PNG or JPEG; none where a note is read alone"}
    content = {"multipart/form-data": {"schema": form | {"properties": {"file": file, **form["properties"]}}}}
    content |= {kind: {"schema": binary} for kind in IMAGE_TYPES}
    said = "of an image that is the whole body: "
    query = [
        {"name": name, "in": "query", "schema": field, "description": said + field["description"]}
        for name, field in alone.items()
    ]
    return {"parameters": query, "requestBody": {"required": True, "content": content}}


def _described(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title="medsd", version=__version__, summary=DISCLAIMER, routes=app.routes)
        models = [(protocol.InferRequest, "validation")]
        schema["components"]["schemas"] |= models_json_schema(models, ref_template=_SCHEMAS)[1]["$defs"]  # type: ignore[arg-type]
        app.openapi_schema = schema
    return app.openapi_schema
