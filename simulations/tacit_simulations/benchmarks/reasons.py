"""Why a target is missed, as measured, and what would be tried next: one entry a figure.

A figure that misses its target without an entry here is an error when the page is built.
"""

REASONS: dict[tuple[str, str], str] = {
    ("round_overhead", "cost per site and round"): (
        "with few sites it is the cost of what is done once a round, of which public loss, "
        "checkpoint and the hash of the parameters are the largest parts; with many it is each "
        "update's way through Flower's message, the sum in float64 and, under privacy, the outbox. "
        "Workers hand updates over in shared memory and sum while others train. Next: a public "
        "loss every few rounds."
    ),
    ("startup", "tacit simulate, to the first round"): (
        "importing torch, SciPy (for the PLD accountant) and scikit-learn (for the digits) takes "
        "more than half of it; the rest is calibrating the noise on the fine grid, and the private "
        "probe, which embeds every record alone. Next: the digits as a file of our own, and "
        "Opacus imported where it is used."
    ),
}
"""(benchmark, name of the figure): the reason, in words without figures that could go stale."""
