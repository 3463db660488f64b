"""The site as a Flower ClientApp: the only file of this side that knows Flower.

Flower sends the text of an exception to the server. So nothing is ever raised into
Flower: every failure becomes a fixed code, and what happened stays in the site's log.
"""

import logging
from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from tacit_client.site import Site
from tacit_common.errors import SiteRefusal, refusal_code
from tacit_common.ledger_chain import SignedHead
from tacit_common.messages import Refusal
from tacit_common.wire import decode_head, decode_request, encode, with_head

_log = logging.getLogger(__name__)


def make_client_app(site_of: Callable[[Context], Site]) -> ClientApp:
    """A ClientApp that answers for the site which `site_of` opens for a node."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        return Message(_reply(message, context, site_of), reply_to=message)

    app.train()(answer)
    app.query("describe")(answer)
    app.query("probe")(answer)
    app.query("account")(answer)
    return app


def _reply(message: Message, context: Context, site_of: Callable[[Context], Site]) -> RecordDict:
    site: Site | None = None
    try:
        site = site_of(context)
        request, witnessed = decode_request(message.content), decode_head(message.content)
        reply = encode(site.answer(request, witnessed=witnessed))
    except SiteRefusal as refusal:
        _log.warning("refused: %s", refusal)
        reply = encode(Refusal(code=refusal.code))
    except Exception as error:
        # Everything, on purpose: an exception's text may hold data and must not leave.
        _log.exception("a request failed")
        reply = encode(Refusal(code=refusal_code(error)))
    return with_head(reply, _head_of(site))


def _head_of(site: Site | None) -> SignedHead | None:
    """Where the site's ledger stands after the answer; None where it cannot be read."""
    try:
        return None if site is None else site.ledger.head
    except Exception:
        _log.exception("the ledger has no head to show")
        return None
