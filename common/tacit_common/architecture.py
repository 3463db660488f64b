"""The identity of an encoder's architecture, so that a site can say which it trains."""

import hashlib
import json

from tacit_common.study import EncoderPlan


def encoder_sha256(plan: EncoderPlan) -> str:
    """SHA-256 of the canonical JSON of an encoder's plan, hexadecimal.

    Guarantees: plans that differ in any field have different hashes; how a file was
    written makes no difference. The hash of a plug-in covers its name and options. What
    code that name means is the site's own configuration, which no message can change.
    """
    content = plan.model_dump(mode="json")
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
