"""The names of query parameters: those that a route does not know are refused, as unknown fields of a body are."""

from difflib import get_close_matches

from fastapi import Request, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute

from sae_service.errors import BadRequest

LONGEST = 64


async def only_known_parameters(request: Request) -> None:
    """Raises BadRequest for a query parameter that the request's route does not have."""
    route: APIRoute = request.scope["route"]
    if not request.query_params or not isinstance(route, APIRoute):
        return
    fields = get_flat_params(route.dependant)
    names = [field.alias for field in fields if isinstance(field.field_info, params.Query)]
    extra = (route.openapi_extra or {}).get("parameters", [])
    families = [parameter["name"] for parameter in extra if parameter.get("style") == "deepObject"]
    for name in request.query_params:
        if name not in names and not (name.endswith("]") and name.partition("[")[0] in families):
            known = [*names, *(f"{family}[name]" for family in families)]
            near = get_close_matches(name[:LONGEST], known, n=1)
            meant = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known) or 'none'}."
            raise BadRequest(f"there is no parameter {name!r}", name, meant)
