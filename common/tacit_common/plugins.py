"""Where the six plug-in points are, and how a name becomes code.

Built-ins are found by their plan's type, in one table a kind (see `encoders`,
`objectives`, `probes`, and `tacit_server.strategies`). A plug-in of one's own is found
by name in the *local* configuration, which maps the name to "module:attribute"; what
travels between server and site is the name alone, so nobody can make a site import
anything that it did not choose.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tacit_common.errors import PluginError
from tacit_common.study import PluginPlan

T = TypeVar("T")


@dataclass(frozen=True)
class PluginTable:
    """What plug-in names mean on this machine: {"name": "module:attribute"}."""

    targets: Mapping[str, str] = field(default_factory=dict)

    def create(self, plan: PluginPlan, kind: str) -> Any:
        """Call the factory that `plan.name` means here with the plan's options.

        The caller checks the result against its protocol with `require`.

        Raises:
            PluginError: the name is not configured here, or its code cannot be used.
        """
        factory = self.load(plan.name, kind)
        try:
            inspect.signature(factory).bind(**plan.options)
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"{kind} plug-in '{plan.name}' does not take these options",
                why=str(error),
                fix="change [.options] in the study, or the plug-in's arguments",
            ) from None
        return factory(**plan.options)

    def load(self, name: str, kind: str) -> Callable[..., Any]:
        """The factory that `name` means on this machine.

        Raises:
            PluginError: the name is not configured here, or cannot be imported.
        """
        target = self.targets.get(name)
        if target is None:
            configured = ", ".join(sorted(self.targets)) or "none"
            raise PluginError(
                f"{kind} plug-in '{name}' is not configured here",
                why=f"the local [plugins] table names: {configured}",
                fix=f"install the plug-in and add {name} = 'module:attribute' under [plugins]",
            )
        module_name, colon, attribute = target.partition(":")
        if not colon or not attribute:
            raise PluginError(
                f"{kind} plug-in '{name}' has no attribute",
                why=f"'{target}' is not of the form module:attribute",
                fix="write for example 'my_package.encoders:SmallConvNet'",
            )
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise PluginError(
                f"{kind} plug-in '{name}' cannot be imported",
                why=str(error),
                fix=f"install '{module_name}', or put its folder on PYTHONPATH",
            ) from None
        if not hasattr(module, attribute):
            raise PluginError(
                f"{kind} plug-in '{name}' cannot be found",
                why=f"module '{module_name}' has no attribute '{attribute}'",
                fix="check the spelling under [plugins]",
            )
        factory: Callable[..., Any] = getattr(module, attribute)
        return factory


def require(candidate: object, protocol: type[T], name: str) -> T:
    """`candidate`, if it has every member of `protocol`.

    Raises:
        PluginError: a member is missing; `tacit_common.testing` checks the rest.
    """
    if isinstance(candidate, protocol):
        return candidate
    missing = [member for member in _members(protocol) if not hasattr(candidate, member)]
    raise PluginError(
        f"plug-in '{name}' is not a {protocol.__name__}",
        why=f"it lacks {', '.join(missing) or 'the protocol'}",
        fix="see the six protocols in docs/extending.md and run tacit_common.testing on it",
    )


def _members(protocol: type) -> list[str]:
    """Names that a protocol asks for; typing keeps such a list from Python 3.12 on only."""
    special = {"__call__", "__len__", "__getitem__"}
    names = {
        name
        for base in protocol.__mro__
        if base is not object
        for name in (*vars(base), *vars(base).get("__annotations__", {}))
    }
    return sorted(name for name in names if name in special or not name.startswith("_"))
