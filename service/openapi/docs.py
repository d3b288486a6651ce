"""Serve the OpenAPI document and `/docs`, a page to read and try the API, without assets of other hosts.

The page is FastAPI's. The files of Swagger UI come from the package `fastapi_offline`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse

router = APIRouter(include_in_schema=False)

_PACKAGE = "fastapi_offline"  # not imported: only its files are used
_DOCUMENT = "/openapi.json"
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; "
    "script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


@router.get("/docs")
def page(request: Request) -> HTMLResponse:
    """Return the documentation page."""
    html = get_swagger_ui_html(
        openapi_url=_DOCUMENT,
        title=f"{request.app.title}: API",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/docs/favicon.png",
        swagger_ui_parameters={"validatorUrl": None},  # the validator is on another host
    )
    html.headers.update(_HEADERS)
    return html


@router.get(_DOCUMENT)
def document(request: Request) -> JSONResponse:
    """Return the OpenAPI document of the service; on `OPS_PORT`, too."""
    return JSONResponse(request.app.state.openapi())


@router.get("/docs/{name}")
def asset(name: Literal["swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"]) -> FileResponse:
    """Return a file of Swagger UI."""
    return FileResponse(_swagger_folder() / name, headers=_HEADERS | {"Cache-Control": "max-age=86400"})


def _swagger_folder() -> Path:
    package = find_spec(_PACKAGE)
    assert package
    assert package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "static"
