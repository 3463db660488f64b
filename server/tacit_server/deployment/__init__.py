"""The coordinator as a service: its folder, its processes, and who may take part."""

__all__: list[str] = []
