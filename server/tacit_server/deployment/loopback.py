"""HTTP to the SuperLink on this machine, for the gateway and the supervisor."""

import ssl
from pathlib import Path

import httpx


def to_superlink(port: int, ca_certificate: Path) -> httpx.AsyncClient:
    """A client of the SuperLink on loopback that believes our own authority alone.

    Raises:
        OSError: the authority's certificate cannot be read.
    """
    return httpx.AsyncClient(
        base_url=f"https://127.0.0.1:{port}",
        verify=ssl.create_default_context(cafile=ca_certificate),
        trust_env=False,  # no proxy between this process and its own machine
        follow_redirects=False,
        timeout=httpx.Timeout(60.0, connect=5.0, pool=10.0),
        # The SuperLink closes an idle connection after 5 s: let go of it before that.
        limits=httpx.Limits(
            max_connections=128, max_keepalive_connections=32, keepalive_expiry=2.0
        ),
    )
