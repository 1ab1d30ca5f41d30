"""A pickle interpreter that can only build data: it imports nothing and calls nothing it was given.

Python's own unpickler runs whatever a file asks for. This one walks the opcodes with
`pickletools.genops` (which only parses) and knows the few that weight files need. A global name is
looked up in a table; a name outside it ends the reading with a `UserError` that says the name.
Memory stays proportional to the file: declared sizes are bounded by the bytes that are there, memo
indices are dictionary keys, and dictionary keys are scalars (nested tuples can take exponential
time to hash).
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, Protocol, cast

from align3r_jax.errors import UserError


class Stream(Protocol):
    """What the interpreter reads from: `io.BytesIO` or `mmap.mmap`.

    Both bound `read` by the bytes that are there; an open file would reserve the declared size.
    """

    def read(self, size: int = ..., /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


class Allowed:
    """A global of the table: `build(*arguments)` makes the value, None if it is never called."""

    def __init__(self, module: str, name: str, build: Callable[..., Any] | None = None):
        self.module, self.name, self.build = module, name, build

    def __repr__(self) -> str:
        return f"{self.module}.{self.name}"


_LITERALS = frozenset(
    (
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
        "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    )
)  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_IGNORED = frozenset(("PROTO", "FRAME"))
_MAX_ARGUMENTS = 64  # parts of a path; tensors have at most 7
_KEY_TYPES = (str, int, float, bool, bytes, type(None))
_MALFORMED = (
    ValueError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError, RecursionError,
)  # fmt: skip


def load(
    stream: Stream,
    table: Mapping[tuple[str, str], Allowed],
    persistent_load: Callable[[Any], Any],
    set_state: Callable[[Any, Any], None],
    source: str,
) -> Any:
    """Returns the object of one pickle; `stream` is left behind its end.

    `persistent_load(id)` answers persistent ids, `set_state(value, state)` applies BUILD; both may
    raise. `source` names the file in messages. Raises UserError for a global outside `table`, for
    any opcode that weight files do not need, and for a malformed or truncated pickle.
    """
    machine = _Machine(table, persistent_load, set_state, source)
    try:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], stream)):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except UserError:
        raise
    except _MALFORMED as error:
        raise UserError(
            f"{source} holds a malformed or truncated pickle ({str(error)[:200]}); copy or "
            "download the file again."
        ) from error
    raise UserError(f"{source} holds a pickle without an end; copy or download the file again.")


class _Machine:
    """The stack machine: `step` runs one opcode."""

    def __init__(self, table, persistent_load, set_state, source: str):
        self._table, self._source = table, source
        self._persistent_load, self._set_state = persistent_load, set_state
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("pop from an empty stack")
        return self._stack.pop()

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _PUTS:
            self._memo[argument] = self._stack[-1]
        elif name in _GETS:
            self._stack.append(self._memo[argument])
        elif name in _TUPLES:
            items = [self.pop() for _ in range(_TUPLES[name])]
            self._stack.append(tuple(reversed(items)))
        elif name == "GLOBAL":
            self._push_global(*argument.split(" ", 1))
        elif name in _OPERATIONS:
            _OPERATIONS[name](self)
        elif name not in _IGNORED:
            raise UserError(
                f"{self._source} uses the pickle operation {name}, which weight files do not "
                "need, so it was refused; nothing in it was executed."
            )

    def _pop_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _empty_list(self) -> None:
        self._stack.append([])

    def _empty_dict(self) -> None:
        self._stack.append({})

    def _list(self) -> None:
        self._stack.append(self._pop_mark())

    def _tuple(self) -> None:
        self._stack.append(tuple(self._pop_mark()))

    def _dict(self) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._fill(items)

    def _append(self) -> None:
        self._extend([self.pop()])

    def _appends(self) -> None:
        self._extend(self._pop_mark())

    def _setitem(self) -> None:
        value, key = self.pop(), self.pop()
        self._fill([key, value])

    def _setitems(self) -> None:
        self._fill(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError("append to something that is no list")
        target.extend(items)

    def _fill(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("items set on something that is no dictionary")
        for key, value in zip(items[::2], items[1::2]):
            if not isinstance(key, _KEY_TYPES):
                raise TypeError(f"a dictionary key of type {type(key).__name__}")
            target[key] = value

    def _stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self._push_global(module, name)

    def _push_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a global whose name is no text")
        allowed = self._table.get((module, name))
        if allowed is None:
            raise UserError(
                f"{self._source} asks for {module[:100]}.{name[:100]}, which is not among the "
                "classes that weight files need (tensors, ordered dictionaries, "
                "argparse.Namespace, NumPy scalars), so it was refused; nothing in it was "
                "executed. If you trust its author, load it with PyTorch and save the "
                "state_dict() alone."
            )
        self._stack.append(allowed)

    def _reduce(self) -> None:
        arguments, target = self.pop(), self.pop()
        if not isinstance(target, Allowed) or target.build is None:
            raise UserError(
                f"{self._source} calls something that is no class of a weight file "
                f"({type(target).__name__}), so it was refused; nothing in it was executed."
            )
        if not isinstance(arguments, tuple) or len(arguments) > _MAX_ARGUMENTS:
            raise TypeError("a call whose arguments are no short tuple")
        self._stack.append(target.build(*arguments))

    def _build(self) -> None:
        state = self.pop()
        self._set_state(self._stack[-1], state)

    def _binpersid(self) -> None:
        self._stack.append(self._persistent_load(self.pop()))


_OPERATIONS: dict[str, Callable[[_Machine], None]] = {
    "MARK": _Machine._mark,
    "MEMOIZE": _Machine._memoize,
    "EMPTY_LIST": _Machine._empty_list,
    "EMPTY_DICT": _Machine._empty_dict,
    "LIST": _Machine._list,
    "TUPLE": _Machine._tuple,
    "DICT": _Machine._dict,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "SETITEM": _Machine._setitem,
    "SETITEMS": _Machine._setitems,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._reduce,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._binpersid,
}
