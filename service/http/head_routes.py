"""Answer HEAD wherever GET is answered, with the same status and headers (RFC 9110, section 9.3.2).

The server sends no body in response to HEAD. Routes whose responses take long check the method themselves.
"""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.routing import APIRoute


def head_routes(router: APIRouter) -> APIRouter:
    """Return a router that has the GET routes of another one for HEAD, undocumented."""
    heads = APIRouter(include_in_schema=False)
    for route in router.routes:
        assert isinstance(route, APIRoute)
        if "GET" in (route.methods or ()):
            heads.add_api_route(
                route.path,
                route.endpoint,
                methods=["HEAD"],
                response_model=route.response_model,
                response_class=route.response_class,
            )
    return heads
