"""How does C++ spell structs and enumerations that Python has? Text, so that the layout has one source."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, c_double, c_int64, c_uint64
from enum import IntEnum
from typing import Any

C_TYPES: dict[Any, str] = {c_int64: "int64_t", c_uint64: "uint64_t", c_double: "double"}


def enumeration(names: type[IntEnum]) -> list[str]:
    """The lines of an enumeration."""
    return [f"enum {names.__name__} : int64_t {{", *(f"    {one.name} = {one.value}," for one in names), "};", ""]


def structure(struct: type[Structure]) -> list[str]:
    """The lines of a struct, all of whose fields are 64 bits wide, so that no compiler pads."""
    lines = [f"struct {struct.__name__} {{"]
    for name, kind, *_ in struct._fields_:
        many = getattr(kind, "_length_", 0)
        inner: Any = getattr(kind, "_type_", kind) if many else kind
        lines.append(f"    {C_TYPES.get(inner, inner.__name__)} {name}{f'[{many}]' if many else ''};")
    return [*lines, "};", ""]


def layout(enumerations: Sequence[type[IntEnum]], structs: Sequence[type[Structure]]) -> list[str]:
    """The lines of them all."""
    return [line for lines in (*map(enumeration, enumerations), *map(structure, structs)) for line in lines]
