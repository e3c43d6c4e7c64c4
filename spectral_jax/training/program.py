"""What the text of a compiled program says: its messages, its operations, where they come from.

XLA's text of a program is a list of computations, each a list of instructions. The TPU's compiler
writes into most of its operations how many cycles it expects them to take.
"""

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\("
)
ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\(")
COMPUTATION = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{$")
LOOK_UP = re.compile(r" gather\(.*slice_sizes=\{(1(?:,1)*)\}")
# these move and compute nothing, or end what a "-start" began
FREE = {
    *("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "partition-id"),
    *("replica-id", "after-all", "copy-done", "async-done", "async-update", "slice-done"),
    *("all-reduce-done", "all-gather-done", "collective-permute-done", "opt-barrier"),
    *("while", "conditional", "call", "async-start"),  # what they call is counted
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """A message between all devices.

    Attributes:
      kind: such as "all-reduce".
      arrays: bytes of each array that it brings to a device.
    """

    kind: str
    arrays: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of a step; one inside a loop counts as often as the loop is known to run.

    Attributes:
      kind: such as "fusion", "convolution" or "copy-start".
      cycles: of all its runs, as the compiler expects; None where it says nothing.
      bytes: of what all its runs write.
      scope: JAX's path of transformations and modules, such as "jvp(network)/UNet/encoder0".
      place: the innermost function of this package that it comes from, such as
        "models/unet.py:31 max_pool"; "" if there is none.
    """

    kind: str
    cycles: int | None
    bytes: int
    scope: str
    place: str


def find_collectives(program: str) -> tuple[Collective, ...]:
    """The messages in the text of a compiled program."""
    return tuple(
        Collective(kind=match[2], arrays=tuple(_bytes(*array) for array in ARRAY.findall(match[1])))
        for match in COLLECTIVE.finditer(program)
    )


def count_scalar_look_ups(program: str) -> int:
    """How many numbers a step looks up one by one: the sizes of its gathers of single elements."""
    return sum(
        int(np.prod([int(n) for n in re.findall(r"\[([\d,]*)\]", line)[0].split(",") if n]))
        for line in program.splitlines()
        if LOOK_UP.search(line)
    )


def find_operations(program: str, package: str = "spectral_jax") -> tuple[Operation, ...]:
    """The operations that a step runs, without those that a fusion holds.

    Args:
      program: the text of a compiled program.
      package: folder whose functions are named as places.
    """
    computations = _split(program)
    places = _places(program, package)
    entry = next((name for name, (is_entry, _) in computations.items() if is_entry), None)

    def of_computation(name: str, times: int) -> Iterator[Operation]:
        for line in computations[name][1]:
            match = INSTRUCTION.match(line)
            if match is None:
                continue
            _, shape, kind = match.groups()
            if kind in ("while", "conditional", "call", "async-start"):
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                inner = times * (int(trips[1]) if trips else 1)
                called = re.findall(r"(?:body|to_apply|calls)=%?([\w.-]+)", line)
                branches = re.search(r"branch_computations=\{([^}]*)\}", line)
                called += re.findall(r"%?([\w.-]+)", branches[1]) if branches else []
                for other in called:
                    if other in computations:
                        yield from of_computation(other, inner)
            if kind in FREE:
                continue
            cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
            scope = re.search(r'op_name="([^"]*)"', line)
            frame = re.search(r"stack_frame_id=(\d+)", line)
            yield Operation(
                kind=kind,
                cycles=times * int(cycles[1]) if cycles else None,
                bytes=times * sum(_bytes(*array) for array in ARRAY.findall(shape)),
                scope=scope[1] if scope else "",
                place=places.get(int(frame[1]), "") if frame else "",
            )

    return tuple(of_computation(entry, 1)) if entry else ()


def _split(program: str) -> dict[str, tuple[bool, list[str]]]:
    """The lines of each computation by its name, and whether it is the first to run."""
    computations: dict[str, tuple[bool, list[str]]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        match = COMPUTATION.match(line)
        if match:
            lines = []
            computations[match[2]] = (bool(match[1]), lines)
        else:
            lines.append(line)
    return computations


def _places(program: str, package: str) -> dict[int, str]:
    """The innermost function of the package in each stack frame."""
    tables: dict[str, dict[int, str]] = {}
    for title, rows in re.findall(
        r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n((?:\d+ .*\n)+)", program, re.M
    ):
        tables[title] = {
            int(number): row
            for number, row in (line.split(" ", 1) for line in rows.splitlines() if line)
        }
    if len(tables) < 4:
        return {}
    files, functions = tables["FileNames"], tables["FunctionNames"]

    def numbers(row: str) -> dict[str, int]:
        return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row)}

    def place(frame: int) -> str:
        while frame in tables["StackFrames"]:
            row = numbers(tables["StackFrames"][frame])
            location = numbers(tables["FileLocations"][row["file_location_id"]])
            file = files[location["file_name_id"]].strip('"')
            _, found, inside = file.rpartition(f"/{package}/")
            if found:
                function = functions[location["function_name_id"]].strip('"').split(".")[-1]
                return f"{inside}:{location['line']} {function}"
            frame = row.get("parent_frame_id", 1) - 1  # as text they are one more; 0 is none
        return ""

    return {frame: place(frame) for frame in tables["StackFrames"]}


def _bytes(kind: str, bits: str, shape: str) -> int:
    size = int(np.prod([int(n) for n in shape.split(",") if n], dtype=np.int64))
    return size * (1 if kind == "pred" else int(bits) // 8)
