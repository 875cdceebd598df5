"""A model of what a disk holds after a loss of power: what was synced, and any part of the rest.

A write and a cut of a file last once the file is synced. A name that is made, changed or removed in
a folder lasts once that folder is synced. Of all that is not synced, any subset may last, and each
folder and file is independent. A rename within a folder happens as a whole or not at all.

This is stricter than file systems are: ext4 keeps the order of names in a folder, for example.
"""

import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path

from tests.torture.disk import Operation

EXHAUSTIVE = 8  # so many unsynced changes are tried in every subset
SAMPLES = 40  # random subsets of more


@dataclass(eq=False)
class Node:
    """A file or folder.

    Attributes:
        synced: content of a file that lasts.
        names: of a folder: name -> node, as the running system sees it.
        lasting: of a folder: name -> node, what lasts.
        pending: changes that were not synced, oldest first.
    """

    is_folder: bool
    synced: bytes = b""
    names: dict[str, "Node"] = field(default_factory=dict)
    lasting: dict[str, "Node"] = field(default_factory=dict)
    pending: list["Change"] = field(default_factory=list)


@dataclass(eq=False)
class Change:
    """A change of one node.

    Attributes:
        data, offset: of a write; data is None for a cut to `offset` bytes.
        removed, added: the names of a folder that it removes and adds, and what they are of.
    """

    data: bytes | None = None
    offset: int = 0
    removed: tuple[str, ...] = ()
    added: dict[str, Node] = field(default_factory=dict)


class Disk:
    """A folder on a disk, as the operations of a log change it."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.root = Node(True)

    def apply(self, operation: Operation) -> None:
        """Do what an operation of the log did. Files that were deleted are gone."""
        if operation.path.endswith(" (deleted)"):
            return
        if operation.kind == "sync":
            if (node := self._find(operation.path)) is not None:
                node.synced = content(node, node.pending)
                node.lasting = entries(node, node.pending)
                node.pending = []
            return
        folder, name = self._place(operation.path)
        match operation.kind:
            case "create" | "folder":
                self._change(folder, Change(added={name: Node(operation.kind == "folder")}))
            case "delete":
                self._change(folder, Change(removed=(name,)))
            case "rename" | "link":
                other, new = self._place(operation.to)
                assert other is folder, "a rename between folders is not in the model"
                removed = (name,) if operation.kind == "rename" else ()
                self._change(folder, Change(removed=removed, added={new: folder.names[name]}))
            case "write":
                folder.names[name].pending.append(Change(operation.data, operation.offset))
            case "cut":
                folder.names[name].pending.append(Change(None, operation.offset))
            case kind:
                raise AssertionError(f"{kind} is not in the model")

    def nodes(self) -> Iterator[Node]:
        """All nodes that may last."""
        seen: dict[int, Node] = {}
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                continue
            seen[id(node)] = node
            waiting += node.lasting.values()
            waiting += [added for change in node.pending for added in change.added.values()]
        yield from seen.values()

    def _change(self, folder: Node, change: Change) -> None:
        for name in change.removed:
            folder.names.pop(name, None)
        folder.names.update(change.added)
        folder.pending.append(change)

    def _place(self, path: str) -> tuple[Node, str]:
        parent, name = os.path.split(path)
        folder = self._find(parent)
        assert folder is not None, f"{path}: is in no folder of the log"
        return folder, name

    def _find(self, path: str) -> Node | None:
        node = self.root
        for name in Path(os.path.relpath(path, self.folder)).parts:
            found = node.names.get(name)
            if found is None:
                return None
            node = found
        return node


def content(node: Node, lasting: Iterable[Change]) -> bytes:
    """The bytes of a file of whose pending changes some last."""
    made = bytearray(node.synced)
    for change in lasting:
        if change.data is None:
            del made[change.offset :]
            made += bytes(change.offset - len(made))
        else:
            made += bytes(max(0, change.offset - len(made)))
            made[change.offset : change.offset + len(change.data)] = change.data
    return bytes(made)


def entries(node: Node, lasting: Iterable[Change]) -> dict[str, Node]:
    """The names of a folder of whose pending changes some last."""
    made = dict(node.lasting)
    for change in lasting:
        for name in change.removed:
            made.pop(name, None)
        made.update(change.added)
    return made


def subsets(disk: Disk, chance: random.Random) -> Iterator[frozenset[Change]]:
    """Sets of the unsynced changes that last: all of them if they are few.

    Otherwise none, all, each one alone, all but each one, those before each, and random ones.
    """
    pending = [change for node in disk.nodes() for change in node.pending]
    if len(pending) <= EXHAUSTIVE:
        for kept in product((False, True), repeat=len(pending)):
            yield frozenset(change for change, keep in zip(pending, kept, strict=True) if keep)
        return
    yield frozenset()
    yield frozenset(pending)
    for left_out in combinations(pending, 1):
        yield frozenset(left_out)
        yield frozenset(pending) - set(left_out)
    for _ in range(SAMPLES):
        share = chance.random()
        yield frozenset(change for change in pending if chance.random() < share)


State = dict[str, bytes | None]  # path -> content of a file, None for a folder


def state(disk: Disk, lasting: frozenset[Change]) -> State:
    """What is on disk after the loss of power, by path in the folder."""
    made: State = {}
    waiting = [("", disk.root)]
    while waiting:
        path, node = waiting.pop()
        if node.is_folder:
            made[path] = None
            kept = [change for change in node.pending if change in lasting]
            waiting += [(f"{path}/{name}", child) for name, child in entries(node, kept).items()]
        else:
            made[path] = content(node, [change for change in node.pending if change in lasting])
    return made


def write(state: State, folder: Path) -> None:
    """Make the files of a state, as old as they are when a machine has started again."""
    for path, data in sorted(state.items()):
        place = folder / path.lstrip("/")
        if data is None:
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.write_bytes(data)
            os.utime(place, (0, 0))
