"""Flower's protobuf-over-HTTP clients, made safe against the other side.

As Flower makes them they follow redirects to any address, read answers of any length into
memory, and end the process if the server says that its version does not fit.
"""

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import httpx
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.protobuf.client import (
    ProtobufCall,
    ProtobufClient,
    ProtobufClientInterceptor,
    ProtobufRequestContext,
)
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from tacit_common.errors import LinkError
from tacit_common.flower.transport import TOO_LONG, BoundedTransport, Bounds

ClientT = TypeVar("ClientT", bound=ProtobufClient)

_TIMEOUT_S = 30.0


def make_client(
    kind: type[ClientT],
    address: str,
    ca_certificate: bytes,
    *,
    component: str,
    bounds: Bounds,
    interceptors: Sequence[ProtobufClientInterceptor] = (),
    retries: RetryInvoker | None = None,
) -> ClientT:
    """A client of one of Flower's APIs over TLS.

    It trusts `ca_certificate` (PEM) and no other authority, uses no proxy, follows no
    redirect, and gives up on an answer that is out of bounds.

    Raises:
        LinkError: the certificate cannot be read, or the address is none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=ca_certificate.decode("ascii"))
    except (ValueError, ssl.SSLError):
        raise LinkError(
            f"{address} cannot be reached safely",
            why="the certificate by which it would be known cannot be read",
            fix="take it anew from the coordinator's invitation",
        ) from None
    client = kind(
        f"https://{address}",
        interceptors=[_Version(component), *interceptors],
        verify=context,
        retry_invoker=retries,
    )
    client._client.close()
    client._client = httpx.Client(
        timeout=_TIMEOUT_S,
        follow_redirects=False,
        trust_env=False,
        headers={"accept-encoding": "identity"},
        transport=BoundedTransport(context, bounds),
    )
    return client


@contextmanager
def link_errors(address: str) -> Iterator[None]:
    """Turn what HTTP, TLS and an answer that is no protobuf raise into a LinkError.

    It says what to do. Keep the block to requests alone: a ValueError of another kind would
    be taken for a senseless answer.
    """
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise _refused(address, error.response.status_code) from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise _unreachable(address, error) from None
    except ValueError:  # Flower's, for what its schema does not fit
        raise senseless(address) from None


def senseless(address: str) -> LinkError:
    """What to say of an answer that is not Flower's."""
    return LinkError(
        f"{address} cannot be spoken with",
        why="its answer cannot be understood",
        fix="check that the address is that of the coordinator's gateway, and that it runs a "
        "Tacit whose version fits",
    )


class _Version:
    """Says which version of Flower this is; what the server thinks of it is not obeyed."""

    def __init__(self, component: str) -> None:
        self._headers = dict(RuntimeVersionMetadata.from_local_component(component).as_metadata())

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        add_headers(context.request, self._headers)
        return call_next(context)


_STATUS = {
    401: (
        "the key is not registered, or this machine's clock is more than five minutes off",
        "ask the coordinator to enroll this site's card, and check the clock",
    ),
    403: (
        "the gateway lets nothing through but what a site needs",
        "run the coordinator's commands on the coordinator's machine",
    ),
    404: ("it does not know this node or run", "check that address and roster belong together"),
    412: (
        "it still counts the last connection of this node as alive, or does not know its key",
        "wait: a node may return about a minute after it vanished; else ask the coordinator",
    ),
    413: ("the message is larger than it takes", "raise largest_message_mb at the coordinator"),
}


def _refused(address: str, status: int) -> LinkError:
    why, fix = _STATUS.get(
        status,
        (f"it answers HTTP status {status}", "look at the log of the SuperLink and the gateway"),
    )
    if 300 <= status < 400:
        why = f"it answers HTTP status {status}, and Tacit goes nowhere it is sent to"
        fix = "give the address of the gateway itself"
    return LinkError(f"{address} turns this machine away", why=why, fix=fix, status=status)


_CLOCK = "check this machine's clock, then ask the coordinator for: tacit server renew"
_SAID = {  # by OpenSSL, httpcore and our transport; the first that fits counts
    "certificate has expired": ("its certificate has expired", _CLOCK),
    "certificate is not yet valid": ("its certificate is not valid yet", _CLOCK),
    "certificate is not valid for": (
        "its certificate is for another address",
        "give the address that the invitation names",
    ),
    "CERTIFICATE_VERIFY_FAILED": (
        "its certificate is not one of the coordinator that this machine knows",
        "compare the invitation's fingerprint with the coordinator by telephone",
    ),
    "WRONG_VERSION_NUMBER": (
        "it does not speak TLS",
        "give the address of the coordinator's gateway",
    ),
    TOO_LONG: (TOO_LONG, "raise largest_message_mb, or ask the coordinator why"),
}


def _unreachable(address: str, error: Exception) -> LinkError:
    said = str(error)
    why, fix = next(
        (sentence for words, sentence in _SAID.items() if words in said),
        (
            f"the connection fails ({type(error).__name__})",
            "check the address, the network and that the server runs",
        ),
    )
    return LinkError(f"{address} cannot be reached", why=why, fix=fix)
