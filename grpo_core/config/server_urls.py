"""Addresses of servers that a person names: their form, and which hosts an operator allows."""

from __future__ import annotations

import os

import httpx

# If set, a comma-separated list of the only hosts that a run may ask for completions.
ROLLOUT_HOSTS = "GRPO_ROLLOUT_HOSTS"


def checked_url(url: str) -> str:
    """The address without a `/` at its end. Raises ValueError with how to write one."""
    _parsed(url)
    return url.rstrip("/")


def check_host(url: str, hosts_variable: str) -> None:
    """Raise ValueError for a host that is not among those of this environment variable, if set."""
    allowed = os.environ.get(hosts_variable)
    if allowed is not None and _parsed(url).host not in [h.strip() for h in allowed.split(",")]:
        raise ValueError(
            f"this server allows only the hosts of {hosts_variable}: {allowed or 'none'}"
        )


def _parsed(url: str) -> httpx.URL:
    """The address as it is opened, so that no other host is judged."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL()
    is_http = parts.scheme in ("http", "https") and bool(parts.host)
    if not is_http or parts.userinfo or not 0 < (parts.port or 80) < 65536:
        raise ValueError("write http(s)://host/v1, without a name or key in it")
    return parts
