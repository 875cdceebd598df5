"""What a file must hold, whoever wrote it: types and ranges of JSON values, shapes of arrays.

A check is a function of a value and of its place in the file. It returns what is wrong in words, or
"" if nothing is:

    SEEDS = fields({"name": TEXT}, {"seeds": each(whole(0, 9))})
    SEEDS({"name": "a", "seeds": [1, 10]}, "") == "seeds[1] is not a whole number from 0 to 9"

Readers of records and plans check what they read by this once, so that no later code meets a value
that its writer cannot have written.
"""

import io
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moebench.disk import is_name, read_bytes

Check = Callable[[Any, str], str]

LARGEST = 2**53  # whole numbers up to it are exact as floats
LONGEST = 2**16  # characters of a text
MAX_ARRAY_BYTES = 2**28  # of the arrays of a file, unpacked


def _is(words: str, holds: Callable[[Any], bool]) -> Check:
    def check(value: Any, place: str) -> str:
        return "" if holds(value) else f"{place or 'it'} is not {words}"

    return check


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > LONGEST:
        return False
    if value.isascii():  # nearly every text is, and a look at each letter takes long
        return True
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in value)  # JSON can write halves


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    if type(value) is int:
        return -(2**1023) < value < 2**1023
    return type(value) is float and math.isfinite(value)


TEXT = _is(f"a text of at most {LONGEST} characters", _is_text)
WORD = _is("a text", lambda value: _is_text(value) and value != "")
FLAG = _is("true or false", lambda value: type(value) is bool)
NUMBER = _is("a finite number", is_number)
NAME = _is("a name of a file", lambda value: _is_text(value) and is_name(value))
DIGEST = _is(
    "a SHA-256", lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value))
)


def anything(_value: Any, _place: str) -> str:
    """The check that everything passes."""
    return ""


def whole(low: int = 0, high: int = LARGEST) -> Check:
    """A whole number of a range, its ends included."""
    return _is(
        f"a whole number from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high,
    )


def one_of(*values: Any) -> Check:
    return _is(
        f"one of {', '.join(map(str, values))}",
        lambda value: any(type(value) is type(known) and value == known for known in values),
    )


def maybe(check: Check) -> Check:
    """null, or what passes another check."""
    return lambda value, place: "" if value is None else check(value, place)


def each(check: Check) -> Check:
    """A list whose items pass a check."""

    def of_list(value: Any, place: str) -> str:
        if not isinstance(value, list):
            return f"{place or 'it'} is not a list"
        wrong = (check(item, f"{place}[{number}]") for number, item in enumerate(value))
        return next(filter(None, wrong), "")

    return of_list


def table(check: Check, key: Check = TEXT) -> Check:
    """An object with any keys, whose values pass a check, and the keys another."""

    def of_table(value: Any, place: str) -> str:
        if not isinstance(value, Mapping):
            return f"{place or 'it'} is not an object"
        for name, item in value.items():
            wrong = key(name, f"a key of {place or 'it'}") or check(item, _below(place, name))
            if wrong:
                return wrong
        return ""

    return of_table


def fields(needed: Mapping[str, Check], others: Mapping[str, Check] = {}) -> Check:
    """An object with some fields, perhaps others, and any that are not named here."""

    def of_object(value: Any, place: str) -> str:
        if not isinstance(value, Mapping):
            return f"{place or 'it'} is not an object"
        for name in needed:
            if name not in value:
                return f"{_below(place, name)} is missing"
        for name, check in (*needed.items(), *others.items()):
            if name in value and (wrong := check(value[name], _below(place, name))):
                return wrong
        return ""

    return of_object


def _below(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


METRIC = maybe(NUMBER)
METRICS = each(METRIC)


def metrics(value: Mapping[str, Any], place: str) -> str:
    """An object whose `group/name` keys hold a number, null, or a list of these."""
    for name, item in value.items():
        if "/" not in name or (type(item) is float and math.isfinite(item)):
            continue
        check = METRICS if isinstance(item, list) else METRIC
        if wrong := TEXT(name, f"a key of {place or 'it'}") or check(item, _below(place, name)):
            return wrong
    return ""


# Arrays

Arrays = dict[str, np.ndarray]


def read_arrays(path: Path, shapes: Mapping[str, str], *needed: str) -> Arrays:
    """The arrays of an .npz file that have one of some names; `arrays_from` checks them.

    Raises OSError or ValueError with what is wrong.
    """
    return arrays_from(read_bytes(path, MAX_ARRAY_BYTES), shapes, *needed)


def arrays_from(content: bytes, shapes: Mapping[str, str], *needed: str) -> Arrays:
    """The arrays in the content of an .npz file that have one of some names.

    Args:
        shapes: name -> kind and axes, as in "int layers experts": `int`, `bool` or `text`, then a
            word an axis. Axes of one word are equally long. Whole numbers are never below -1.
        needed: names that must be there.

    Raises:
        ValueError: for a file that is no .npz, whose arrays are larger than they say or than
            MAX_ARRAY_BYTES, and for an array that is missing or of another kind or shape.
    """
    lengths: dict[str, int] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            infos = {info.filename.removesuffix(".npy"): info for info in packed.infolist()}
            chosen = {name: infos[name] for name in shapes if name in infos}
            if sum(info.file_size for info in chosen.values()) > MAX_ARRAY_BYTES:
                raise ValueError(f"unpacks to more than {MAX_ARRAY_BYTES >> 20} MiB")
            arrays = {name: _array(packed, info) for name, info in chosen.items()}
    except ValueError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds at broken bytes
        raise ValueError(f"is not an .npz file ({error})".replace("\n", " ")) from None
    for name in needed:
        if name not in arrays:
            raise ValueError(f"lacks the array {name}")
    for name, array in arrays.items():
        kind, *axes = shapes[name].split()
        if array.ndim != len(axes) or not _KINDS[kind](array):
            raise ValueError(f"has an array {name} that is not {shapes[name]}")
        for axis, length in zip(axes, array.shape, strict=True):
            if lengths.setdefault(axis, length) != length:
                raise ValueError(f"has {lengths[axis]} {axis}, and {length} in {name}")
    return arrays


_KINDS: dict[str, Callable[[np.ndarray], bool]] = {
    "int": lambda array: array.dtype.kind in "iu" and (not array.size or array.min() >= -1),
    "bool": lambda array: array.dtype.kind == "b",
    "text": lambda array: array.dtype.kind == "U",
}


def _array(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array, whose header must not promise more bytes than follow it."""
    with packed.open(info) as file:
        content = io.BytesIO(file.read(info.file_size))  # else it unpacks whatever follows
    version = np.lib.format.read_magic(content)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"{info.filename}: is of an unknown version {version}")
    shape, _, dtype = read[version](content)
    if dtype.hasobject:
        raise ValueError(f"{info.filename}: holds objects")
    if math.prod(shape) * dtype.itemsize != len(content.getvalue()) - content.tell():
        raise ValueError(f"{info.filename}: is not as long as its header says")
    content.seek(0)
    return np.lib.format.read_array(content, allow_pickle=False)
