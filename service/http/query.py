"""Refuse query parameters that a route does not have, as unknown fields of a body are refused.

A misspelled filter would otherwise return more than was asked for. OpenAI's clients send no others than those
that the routes under `/v1/` have. The console's page and its files are served with any.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_origin

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jobs.errors import InvalidRequest

_MAX_CHARACTERS = 100  # of a name that a client chose


async def check_query(request: Request) -> None:
    """Raise InvalidRequest if the query has a parameter that the route does not have.

    Neither may a parameter be given twice, unless it is a list.
    """
    if not request.query_params:
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    known = dict(_parameters(route.dependant))
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        shown = name[:_MAX_CHARACTERS]
        if name not in known:
            allowed = f"; it has {', '.join(sorted(known))}" if known else ""
            raise InvalidRequest(f"{shown}: is not a query parameter of this route{allowed}", shown)
        if name in seen and get_origin(known[name].annotation) is not list:
            raise InvalidRequest(f"{shown}: is given twice", shown)
        seen.add(name)


def _parameters(dependant: Dependant) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the query parameters of a route and of its dependencies."""
    for parameter in dependant.query_params:
        kind = parameter.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from kind.model_fields.items()
        else:
            yield parameter.alias, parameter.field_info
    for part in dependant.dependencies:
        yield from _parameters(part)
