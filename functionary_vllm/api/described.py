"""The request bodies in /openapi.json: routes read their bodies themselves, so FastAPI cannot see the models.

In: a pydantic model. Out: what FastAPI calls `openapi_extra`, and the schemas that it refers to.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

_TEMPLATE = "#/components/schemas/{model}"


def described_body(model: type[BaseModel]) -> dict[str, Any]:
    reference = {"$ref": _TEMPLATE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


def describe(app: FastAPI, *models: type[BaseModel]) -> None:
    """Make `app.openapi` hold the models that bodies refer to."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            for model in models:
                own = model.model_json_schema(ref_template=_TEMPLATE)
                schemas.update(own.pop("$defs", {}))
                schemas[model.__name__] = own
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
