"""Why a target is missed, as measured, and what would be tried next: one entry a figure.

A figure that misses its target without an entry here is an error when the page is built.
"""

_FLOAT64 = (
    "the contribution of a unit is bounded to the last bit: norms and sums are in float64, whose "
    "products of matrices cost a CPU more than twice those of float32, and casting, adding up and "
    "Gram norms as much again. Sums in float32 would be faster, but what rounding may change in "
    "them has no useful bound, and that has been used to attack libraries (arXiv 2207.10635). "
)
_KERNEL = (
    "Next: one kernel that casts, scales and multiplies; on a GPU, exact sums of integer products."
)

REASONS: dict[tuple[str, str], str] = {
    ("clipping", "book-keeping over plain: time"): (
        f"{_FLOAT64}In small models calling many small operations adds as much. {_KERNEL}"
    ),
    ("clipping", "book-keeping over Opacus ghost clipping: time"): (
        f"Opacus sums in float32; here {_FLOAT64}{_KERNEL}"
    ),
    ("clipping", "book-keeping over Opacus hooks: time"): f"as above: {_FLOAT64}{_KERNEL}",
    ("clipping", "book-keeping over vmap(grad): time"): f"as above: {_FLOAT64}{_KERNEL}",
    ("peers", "round of Tacit, 2 workers, over that of Flower on Ray, Opacus"): (
        "close to half of a step of so small a model is its noise: AES-256 and rounding to the "
        "lattice cost more than a seeded generator of floats. Next: fewer passes over memory in "
        "rounding to the lattice."
    ),
    ("peers", "round of Tacit, 2 workers, over that of pfl, 2 processes"): (
        "a site of Tacit is asked by a message, checks it, and signs a row of its ledger, which "
        "takes longer than training here; in pfl a site is a call of a function. Next: train "
        "sites together by torch.func.vmap, which halved the compute of this model in a trial, "
        "and sign once for all rows of a worker's round."
    ),
    ("peers", "round of Tacit, 1 worker, over that of plain PyTorch loop, no DP"): (
        "what a site and a round cost beyond training (see the section on that) does not shrink "
        "with so short a training. Where a site trains for a tenth of a second or longer it is "
        "within the target. Next: the same as against pfl."
    ),
    ("round_overhead", "cost per site and round"): (
        "with few sites it is what is done once a round: public loss, checkpoint, the hash of the "
        "parameters, and ε so far. With very many under privacy it is the outbox, where each site "
        "keeps its last four answers on the disk. Next: those answers in one file that is written "
        "over, and ε of the next round while sites work."
    ),
    ("scaling", "a round, more registered sites over fewer, as many asked"): (
        "where as many sites are registered as are asked, all of them stay open after the first "
        "round; among many more, most of a round's sites are asked for the first time, and each "
        "opens its ledger and verifies it. Beyond that nothing grows. Next: open the next round's "
        "sites while the server applies this one."
    ),
    ("startup", "tacit simulate, to the first round"): (
        "the private probe before the first round embeds every record alone, so that rounding "
        "cannot make one record's features depend on how many others there are; the rest is "
        "importing torch, SciPy (for the PLD accountant) and scikit-learn (for the digits), and "
        "calibrating the noise on the fine grid. Next: the digits as a file of our own."
    ),
}
"""(benchmark, name of the figure): the reason, in words without figures that could go stale."""
