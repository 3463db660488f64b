"""Tacit against its peers, on the same work: `make bench-peers`.

    work → the same images, start and noise for all → each peer in a process of its own
         → the same result? → seconds a round, memory, ratios

`task.py` is the work: model, loss, data. Each contestant is one file that reads as its own
documentation has it. Those of the peers run in an environment of their own
(`requirements.txt`) and import nothing of Tacit but `task.py` and what measures.
"""

__all__: list[str] = []
