"""The policy's fields as a page of Markdown: docs/policy.md holds it."""

from tacit_client.policy.file import policy_toml
from tacit_client.policy.model import SitePolicy
from tacit_common.field_reference import field_reference

_OPENING = """\
# The site's policy

`policy.toml` in a site's folder says what the site allows. Its operator writes it; it is read
at the site and nowhere else, and no server can change it. A key that is not on this page is
refused, and nothing that bears on privacy has a default. A change counts from the next
request on, for studies that have begun too.

A study is held against the policy with every request that names it, before anything of it is
built, read or paid. What a site answers to a study that it refuses is one fixed word, and no
figure: `policy`, `hours`, `approval`, or `budget` where the ledger refuses. Which limit it
was stands in the site's own log. No answer depends on data.

What a policy cannot do: it cannot make a study private that has no differential privacy, and
it does not bound what other sites release of the same person. What the caps mean:
[privacy.md](privacy.md).

## Consent

Under `consent.approval = "each study"` a study that nobody agreed to is refused and waits, as
a file under `pending/`. `tacit site pending` says in plain words what each would do,
what it would cost at this site's δ, what would leave, and whether policy and ledger would
take it. `tacit site approve` agrees to one run of one study of one coordinator, exactly as
it is: the consent is bound to the digest of everything that travels, so any change asks for
another, and to the first run that pays under it, so another run asks for another too. What that
run has paid stays within the ε that was shown, at the δ that was shown: a round that is paid
twice, because the coordinator lost a checkpoint and asks it with other parameters, is paid out
of the rounds that were still to come. `tacit site withdraw` takes consent back.

Under `consent.approval = "none"` nobody is asked, and `study.epsilon_cap` bounds all runs of
one study together. A study that differs in any field is another study, with a bound of its own:
then only `epsilon_cap`, the bound of everything, limits how many there are.

## Example

The policy of a new site, as `tacit site init` writes it:

"""


def policy_reference() -> str:
    """Markdown: what a policy is, an example, and every section with its fields."""
    example = policy_toml(SitePolicy.to_begin_with(unit="subject", epsilon_cap=8.0, delta=1e-6))
    return "\n".join([f"{_OPENING}```toml\n{example}```\n", *field_reference(SitePolicy)])
