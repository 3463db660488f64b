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
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from tacit_common.errors import LinkError

ClientT = TypeVar("ClientT", bound=ProtobufClient)

_TIMEOUT_S = 30.0


def make_client(
    kind: type[ClientT],
    address: str,
    ca_certificate: bytes,
    *,
    component: str,
    interceptors: Sequence[ProtobufClientInterceptor] = (),
    largest_answer: int,
) -> ClientT:
    """A client of one of Flower's APIs over TLS.

    It trusts `ca_certificate` (PEM) and no other authority, follows no redirect, and gives
    up on an answer of more than `largest_answer` bytes.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca_certificate.decode("ascii"))
    client = kind(
        f"https://{address}",
        interceptors=[_Version(component), *interceptors],
        verify=context,
    )
    client._client.close()
    client._client = httpx.Client(
        timeout=_TIMEOUT_S,
        follow_redirects=False,
        transport=_Bounded(httpx.HTTPTransport(verify=context), largest_answer),
    )
    return client


@contextmanager
def link_errors(address: str) -> Iterator[None]:
    """Turn what HTTP and TLS raise into a LinkError that says what to do."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise _refused(address, error.response.status_code) from None
    except httpx.HTTPError as error:
        raise _unreachable(address, error) from None


class _Version:
    """Says which version of Flower this is; what the server thinks of it is not obeyed."""

    def __init__(self, component: str) -> None:
        self._headers = dict(RuntimeVersionMetadata.from_local_component(component).as_metadata())

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        add_headers(context.request, self._headers)
        return call_next(context)


class _Bounded(httpx.BaseTransport):
    """Ends an answer that is longer than it may be."""

    def __init__(self, inner: httpx.BaseTransport, largest_answer: int) -> None:
        self._inner = inner
        self._largest = largest_answer

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._inner.handle_request(request)
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_BoundedStream(response.stream, self._largest),
            extensions=response.extensions,
        )

    def close(self) -> None:
        self._inner.close()


class _BoundedStream(httpx.SyncByteStream):
    def __init__(self, inner: object, largest: int) -> None:
        if not isinstance(inner, httpx.SyncByteStream):
            raise TypeError("a synchronous transport gives synchronous streams")
        self._inner = inner
        self._left = largest

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._inner:
            self._left -= len(chunk)
            if self._left < 0:
                raise httpx.DecodingError("the answer is longer than it may be")
            yield chunk

    def close(self) -> None:
        self._inner.close()


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
        "it still counts the last connection of this node as alive",
        "wait: a node may return about a minute after it vanished",
    ),
    413: ("the message is larger than it takes", "raise largest_message_mb at the coordinator"),
}


def _refused(address: str, status: int) -> LinkError:
    why, fix = _STATUS.get(
        status,
        (f"it answers HTTP status {status}", "look at the log of the SuperLink and the gateway"),
    )
    return LinkError(f"{address} turns this machine away", why=why, fix=fix, status=status)


def _unreachable(address: str, error: httpx.HTTPError) -> LinkError:
    said = str(error)
    if "certificate has expired" in said:
        why, fix = "its certificate has expired", "ask the coordinator for: tacit server renew"
    elif "CERTIFICATE_VERIFY_FAILED" in said:
        why = "its certificate is not one of the coordinator that this machine knows"
        fix = "compare the invitation's fingerprint with the coordinator by telephone"
    elif isinstance(error, httpx.DecodingError):
        why, fix = "its answer is longer than it may be", "raise largest_message_mb, or ask why"
    else:
        why = f"the connection fails ({type(error).__name__})"
        fix = "check the address, the network and that the server runs"
    return LinkError(f"{address} cannot be reached", why=why, fix=fix)
