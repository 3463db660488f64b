"""An independent service that remembers where the ledgers of sites stood."""

__all__: list[str] = []
