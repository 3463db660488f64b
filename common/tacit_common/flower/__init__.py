"""Everything of Flower that Flower does not promise to keep: its private modules.

Tacit uses Flower's messages, its SuperLink and its node registry, and runs its own code at
both ends (docs/deploy.md says why). For that it speaks Flower's protocol by Flower's own
private classes. They are used here and nowhere else; tests/common/flower holds them to
what is relied on.

    fleet.py     a site's link to a SuperLink
    control.py   registering nodes, starting and stopping runs
    tasks.py     taking up a run as its ServerApp
    apps.py      calling a ServerApp and a ClientApp in one process
    http.py      the HTTP client under the first three: bounded, and it follows nobody
"""

__all__: list[str] = []
