"""Which errors each operation can answer with, and which keys it asks for, as `/docs` shows them.

Derived from what an operation is rather than written beside each route: what the connection refuses holds for all of
them, what `access` refuses for all that need a scope, and what a body can cause for all that take one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .access import scope_of
from .keys import ADMIN, INFER, OPEN

if TYPE_CHECKING:
    from .access import Access

ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}

SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, as `Authorization: Bearer <key>`."},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key by itself."},
}

REASONS = {
    400: "The request cannot be read as what is expected; the sentence names the place.",
    401: "No API key was given, or it is not known.",
    403: "The API key lacks the scope that this needs.",
    404: "There is no such path, no such model, or no key with the scope admin.",
    408: "Headers or body did not arrive in time.",
    409: "Pins or labels are declared that this contradicts; the sentence says where.",
    413: "More bytes or more rows than one request may hold.",
    415: "The content type or the content encoding is none that the route reads.",
    429: "The API key has used up its share; Retry-After says when to try again.",
    431: "More headers than the service reads.",
    500: "The service failed; its log has the reason under the request id.",
    501: "The service does not offer this.",
    503: "Not ready, or too busy to answer in time; Retry-After says when to try again.",
    504: "The deadline passed before the answer was ready.",
}

_EVERYWHERE = {400, 408, 413, 431, 500, 501, 503}  # by the connection, before any route is chosen
_LATER = {"Retry-After": {"description": "Whole seconds.", "schema": {"type": "integer", "minimum": 1}}}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"description": "The scheme that is accepted.", "schema": {"type": "string"}}},
    429: _LATER,
    503: _LATER,
}


def error_statuses(method: str, path: str, *, has_body: bool) -> set[int]:
    """Return every status other than 200 that an operation can answer with.

    Args:
        method: in capitals.
        path: as the route has it, with its parameters in braces.
        has_body: whether it reads one.
    """
    statuses, scope = set(_EVERYWHERE), scope_of(method, path)
    asks = scope == INFER  # a model
    if scope != OPEN:
        statuses |= {401, 403, 429}
    if scope == ADMIN or asks or "{model}" in path:
        statuses |= {404}
    if has_body:
        statuses |= {415}
    if scope == ADMIN:
        statuses |= {409}
    if asks:
        statuses |= {504}
    return statuses


def error_responses(method: str, path: str, *, has_body: bool) -> dict[str, Any]:
    """Return the same as the `responses` of an operation."""
    return {
        str(status): {"description": REASONS[status], "content": ERROR, "headers": dict(_HEADERS.get(status, {}))}
        for status in sorted(error_statuses(method, path, has_body=has_body))
    }


def security(method: str, path: str, access: Access) -> list[dict[str, list[str]]]:
    """Return which keys an operation asks for; an empty one first means that this service answers it without."""
    scope = scope_of(method, path)
    if scope == OPEN:
        return []
    keys: list[dict[str, list[str]]] = [{name: []} for name in SECURITY_SCHEMES]
    return keys if access.needs_key(scope) else [{}, *keys]
