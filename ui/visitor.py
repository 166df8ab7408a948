"""Who is asking: what a limit on runs per visitor counts by. Read in a handler, where gradio keeps the request."""

from __future__ import annotations

from gradio.context import LocalContext


def visitor() -> str | None:
    """The name of who logged in, else the address that the request came from; None outside of a request."""
    request = LocalContext.request.get(None)
    if request is None:
        return None
    name = getattr(request, "username", None)
    return f"name {name}" if name else f"address {request.client.host}" if request.client else "address unknown"
