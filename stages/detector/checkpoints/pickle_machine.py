"""Interprets a pickle's instructions without calling any code that it names.

A pickle is a program for a stack machine, and Python's own machine calls whatever the program
names. This one knows containers, numbers, text and bytes, and of all names only those of
`pickled_arrays.CALLABLES`; any other is a CheckpointError. It is not built on pickle.Unpickler,
whose C code can be made to allocate gigabytes by six bytes (an index into its memo), and which
calls methods of what it finds.

The instructions are those of pickletools.py of CPython, protocols 0 to 5.
"""

from __future__ import annotations

import codecs
import mmap
import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any

from boxless.errors import BoxlessError
from stages.detector.checkpoints.checkpoint_error import CheckpointError
from stages.detector.checkpoints.pickled_arrays import CALLABLES, Array, Dtype, checked_key

MAX_STEPS = 2_000_000  # a checkpoint of 700 arrays takes 20 thousand
MAX_PROTOCOL = 5
HINT = (
    "no code in it was run; use a file from a source you trust, or have the project that wrote "
    "it save the weights as .safetensors or as arrays alone"
)
_MAX_INTEGER_BYTES = 64
_CODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
_NAMES = {code: name for name, code in _CODES.items()}


class PickleMachine:
    """Runs one pickle. Every method without an underscore is an instruction, see _STEPS."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self.data, self.position = data, 0
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.num_bytes_left = 4 * len(data) + (1 << 16)  # that functions may be given

    def run(self) -> Any:
        """What is on the stack at the end."""
        for _ in range(MAX_STEPS):
            code = self._bytes(1)[0]
            if code == _CODES["STOP"]:
                if num_more := len(self.data) - self.position:
                    raise CheckpointError(
                        f"got {num_more} bytes after the pickle's end, expected none; is it "
                        "another kind of file?"
                    )
                return self.stack.pop()
            step = _STEPS.get(code)
            if step is None:
                name = _NAMES.get(code, "none that there is")
                raise CheckpointError(
                    f"got instruction {code:#04x} ({name}) at byte {self.position - 1}, expected "
                    f"those of arrays, numbers, text and plain containers; {HINT}"
                )
            step(self)
        raise CheckpointError(
            f"got more than {MAX_STEPS} instructions, expected a file of arrays; {HINT}"
        )

    def _bytes(self, num: int) -> bytes:
        """The next `num` bytes."""
        piece = self.data[self.position : self.position + num]
        if len(piece) < num:
            raise CheckpointError(
                f"got {len(self.data)} bytes, expected {self.position + num} or more: the file is "
                "cut off, or is no pickle; fetch it again"
            )
        self.position += num
        return piece

    def _number(self, form: str) -> Any:
        """The next number, as struct calls its form."""
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _sized(self, form: str) -> bytes:
        """Bytes after their number."""
        num = self._number(form)
        if num < 0:
            raise BoxlessError(f"{num} bytes")
        return self._bytes(num)

    def _line(self) -> bytes:
        """Up to the end of the line, without it."""
        end = self.data.find(b"\n", self.position)
        line = self._bytes((len(self.data) if end < 0 else end) - self.position + 1)
        return line[:-1]

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _pop_mark(self) -> list[Any]:
        """What was pushed since the last mark."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _find(self, module: object, name: object) -> Callable[..., Any]:
        """Our function for a name. Raises CheckpointError for every name but a few."""
        found = (
            CALLABLES.get((module, name))
            if isinstance(module, str) and isinstance(name, str)
            else None
        )
        if found is None:
            asked = f"{module}.{name}"[:200]
            raise CheckpointError(
                f"got a pickle that asks for {asked!r}, expected arrays, numbers, text and plain "
                f"containers only; {HINT}"
            )
        return found

    def _call(self, function: Any, arguments: Any) -> Any:
        """`function` must be one of ours, found by its name."""
        if not isinstance(arguments, tuple) or not any(
            function is ours for ours in CALLABLES.values()
        ):
            raise BoxlessError(f"a call of {type(function).__name__}")
        self.num_bytes_left -= sum(
            len(argument) for argument in arguments if isinstance(argument, (bytes, str))
        )
        if self.num_bytes_left < 0:
            raise CheckpointError(f"got a pickle that uses the same bytes repeatedly; {HINT}")
        return function(*arguments)

    def mark(self) -> None:
        """MARK."""
        self.marked.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        """POP: the top of the stack, or a mark."""
        if self.stack:
            self.stack.pop()
        else:
            self._pop_mark()

    def call(self) -> None:
        """REDUCE and NEWOBJ."""
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    def call_marked(self) -> None:
        """OBJ."""
        function, *arguments = self._pop_mark()
        self._push(self._call(function, tuple(arguments)))

    def call_named(self) -> None:
        """INST."""
        function = self._find(self._line().decode(), self._line().decode())
        self._push(self._call(function, tuple(self._pop_mark())))

    def name(self) -> None:
        """GLOBAL."""
        self._push(self._find(self._line().decode(), self._line().decode()))

    def name_of_stack(self) -> None:
        """STACK_GLOBAL."""
        name, module = self.stack.pop(), self.stack.pop()
        self._push(self._find(module, name))

    def fill(self) -> None:
        """BUILD: give the state to an array or a dtype."""
        state = self.stack.pop()
        stand_in = self.stack[-1]
        if type(stand_in) not in (Array, Dtype) or not isinstance(state, tuple):
            raise BoxlessError(f"a {type(stand_in).__name__} with a state")
        raw = state[-1]
        self.num_bytes_left -= len(raw) if isinstance(raw, (bytes, str)) else 0
        if self.num_bytes_left < 0:
            raise CheckpointError(f"got a pickle that uses the same bytes repeatedly; {HINT}")
        stand_in.__setstate__(state)

    def integer_line(self) -> None:
        """INT."""
        line = self._line()
        known = {b"00": False, b"01": True}
        self._push(known[line] if line in known else _integer(line))

    def long_line(self) -> None:
        """LONG."""
        self._push(_integer(self._line().removesuffix(b"L")))

    def long(self, form: str) -> None:
        """LONG1 and LONG4; `form` is that of the length, as struct has it."""
        raw = self._sized(form)
        if len(raw) > _MAX_INTEGER_BYTES:
            raise BoxlessError(f"an integer of {len(raw)} bytes")
        self._push(int.from_bytes(raw, "little", signed=True))

    def string_line(self) -> None:
        """STRING."""
        line = self._line().strip()  # as Python 2 shows text: in quotes, with backslashes
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
            raise BoxlessError("text without quotes")
        self._push(codecs.escape_decode(line[1:-1])[0].decode("latin1"))

    def append(self) -> None:
        """APPEND."""
        item = self.stack.pop()
        self._container(list).append(item)

    def append_marked(self) -> None:
        """APPENDS."""
        items = self._pop_mark()
        self._container(list).extend(items)

    def set_item(self) -> None:
        """SETITEM."""
        value, key = self.stack.pop(), self.stack.pop()
        self._container(dict)[checked_key(key)] = value

    def set_marked(self) -> None:
        """SETITEMS."""
        items = self._pop_mark()
        self._container(dict).update(_pairs(items))

    def _container(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise BoxlessError(
                f"a {type(self.stack[-1]).__name__}, to be used as a {kind.__name__}"
            )
        return self.stack[-1]

    def tuple_of(self, num: int) -> None:
        """TUPLE1 to TUPLE3."""
        if len(self.stack) < num:
            raise IndexError("an empty stack")
        self.stack[-num:] = [tuple(self.stack[-num:])]

    def keep(self, index: int) -> None:
        """PUT, BINPUT, LONG_BINPUT and MEMOIZE."""
        self.memo[index] = self.stack[-1]

    def protocol(self) -> None:
        """PROTO. Raises CheckpointError for a protocol that is not known."""
        number = self._bytes(1)[0]
        if number > MAX_PROTOCOL:
            raise CheckpointError(
                f"got protocol {number}, expected 0 to {MAX_PROTOCOL}; is it a pickle?"
            )


def _integer(line: bytes) -> int:
    if len(line) > 2 * _MAX_INTEGER_BYTES:
        raise BoxlessError(f"an integer of {len(line)} digits")
    return int(line)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """A dict of keys and values in turn."""
    if len(items) % 2:
        raise BoxlessError("a key without a value")
    return {checked_key(key): value for key, value in zip(items[::2], items[1::2])}


def _utf8(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


_Step = Callable[[PickleMachine], Any]
_PUSHES: dict[str, Callable[[PickleMachine], Any]] = {
    "NONE": lambda m: None,
    "NEWTRUE": lambda m: True,
    "NEWFALSE": lambda m: False,
    "BININT": lambda m: m._number("<i"),
    "BININT1": lambda m: m._number("<B"),
    "BININT2": lambda m: m._number("<H"),
    "FLOAT": lambda m: float(m._line()),
    "BINFLOAT": lambda m: m._number(">d"),
    "BINSTRING": lambda m: m._sized("<i").decode("latin1"),
    "SHORT_BINSTRING": lambda m: m._sized("<B").decode("latin1"),
    "UNICODE": lambda m: m._line().decode("raw-unicode-escape"),
    "SHORT_BINUNICODE": lambda m: _utf8(m._sized("<B")),
    "BINUNICODE": lambda m: _utf8(m._sized("<I")),
    "BINUNICODE8": lambda m: _utf8(m._sized("<Q")),
    "SHORT_BINBYTES": lambda m: m._sized("<B"),
    "BINBYTES": lambda m: m._sized("<I"),
    "BINBYTES8": lambda m: m._sized("<Q"),
    "BYTEARRAY8": lambda m: m._sized("<Q"),
    "EMPTY_DICT": lambda m: {},
    "EMPTY_LIST": lambda m: [],
    "EMPTY_TUPLE": lambda m: (),
    "DICT": lambda m: _pairs(m._pop_mark()),
    "LIST": lambda m: m._pop_mark(),
    "TUPLE": lambda m: tuple(m._pop_mark()),
    "DUP": lambda m: m.stack[-1],
    "GET": lambda m: m.memo[_integer(m._line())],
    "BINGET": lambda m: m.memo[m._number("<B")],
    "LONG_BINGET": lambda m: m.memo[m._number("<I")],
}
_OTHERS: dict[str, _Step] = {
    "PROTO": PickleMachine.protocol,
    "FRAME": lambda m: m._bytes(8),  # a hint for reading ahead
    "MARK": PickleMachine.mark,
    "POP": PickleMachine.pop,
    "POP_MARK": PickleMachine._pop_mark,
    "INT": PickleMachine.integer_line,
    "LONG": PickleMachine.long_line,
    "LONG1": lambda m: m.long("<B"),
    "LONG4": lambda m: m.long("<i"),
    "STRING": PickleMachine.string_line,
    "APPEND": PickleMachine.append,
    "APPENDS": PickleMachine.append_marked,
    "SETITEM": PickleMachine.set_item,
    "SETITEMS": PickleMachine.set_marked,
    "TUPLE1": lambda m: m.tuple_of(1),
    "TUPLE2": lambda m: m.tuple_of(2),
    "TUPLE3": lambda m: m.tuple_of(3),
    "PUT": lambda m: m.keep(_integer(m._line())),
    "BINPUT": lambda m: m.keep(m._number("<B")),
    "LONG_BINPUT": lambda m: m.keep(m._number("<I")),
    "MEMOIZE": lambda m: m.keep(len(m.memo)),
    "GLOBAL": PickleMachine.name,
    "STACK_GLOBAL": PickleMachine.name_of_stack,
    "REDUCE": PickleMachine.call,
    "NEWOBJ": PickleMachine.call,
    "OBJ": PickleMachine.call_marked,
    "INST": PickleMachine.call_named,
    "BUILD": PickleMachine.fill,
}


def _pushing(value: Callable[[PickleMachine], Any]) -> _Step:
    return lambda machine: machine._push(value(machine))


_STEPS: Mapping[int, _Step] = {
    **{_CODES[name]: _pushing(value) for name, value in _PUSHES.items()},
    **{_CODES[name]: step for name, step in _OTHERS.items()},
}
