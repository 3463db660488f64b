"""Results kept by the identity of the immutable object that they were computed from.

A round asks the same of every site: the digest of one study, the hash of one vector of
parameters. Equality would have to look at all of an object; identity is one comparison.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

ArgumentT = TypeVar("ArgumentT")
ResultT = TypeVar("ResultT")


def remembered(
    kept: int,
) -> Callable[[Callable[[ArgumentT], ResultT]], Callable[[ArgumentT], ResultT]]:
    """Compute a function of one object once, for the `kept` objects that were asked of last.

    Only for objects that never change. They stay in memory as long as their results do, so
    that no other object can take an identity over.
    """

    def decorate(function: Callable[[ArgumentT], ResultT]) -> Callable[[ArgumentT], ResultT]:
        known: OrderedDict[int, tuple[ArgumentT, ResultT]] = OrderedDict()
        lock = threading.Lock()

        @wraps(function)
        def remembering(argument: ArgumentT) -> ResultT:
            with lock:
                if id(argument) in known:
                    known.move_to_end(id(argument))
                    return known[id(argument)][1]
            result = function(argument)
            with lock:
                known[id(argument)] = (argument, result)
                while len(known) > kept:
                    known.popitem(last=False)
            return result

        return remembering

    return decorate
