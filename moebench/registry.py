"""Declarations by name: shipped, from an entry point, or from a module that `--plugin` names.

A `Registry` holds the declarations of one kind (scopes, methods). A declaration has all that a
config needs, without torch. Its `target` is the class that does the work; it is imported when
needed.
"""

import hashlib
import importlib
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from moebench.errors import ConfigError, nearest

NAME = re.compile("[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Declaration:
    """The facts that all kinds of declarations share.

    Attributes:
        name: the value of the key that chooses it.
        meaning: what it does, in one line.
        target: `module:Class`, or the class itself; None where nothing acts.
        plugin: `module@hash` of the source text, for a declaration that moebench does not ship.
    """

    name: str
    meaning: str
    target: str | type | None
    plugin: str | None = field(default=None, kw_only=True)

    def load(self) -> Any:
        """Import and return the target class."""
        if not isinstance(self.target, str):
            return self.target
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


Declared = TypeVar("Declared", bound=Declaration)
Target = TypeVar("Target", bound=type)


class Registry(Generic[Declared]):
    """The declarations of one kind, by name.

    Args:
        kind: the word for one of them, as errors say it.
        key: the config key that takes the name.
        make: the class of the declarations.
        shipped: the declarations that moebench ships.

    An entry point of the group `moebench.<kind>s` declares a name. Its module is imported when the
    name is chosen.
    """

    def __init__(
        self, kind: str, key: str, make: type[Declared], shipped: Iterable[Declared]
    ) -> None:
        self.kind, self.key, self.group = kind, key, f"moebench.{kind}s"
        self.known = {declaration.name: declaration for declaration in shipped}
        self._make = make
        self._shipped = tuple(self.known)
        _registries.append(self)

    def get(self, name: str) -> Declared:
        """The declaration of a name. Raises ConfigError if there is none."""
        if name not in self.known:
            for point in _entry_points(self.group, name):
                subject = f"{self.key}={name}: its entry point {point.value}"
                _import(_find(point.module, subject), subject)
        if name not in self.known:
            near = nearest(name, self)
            guess = f"did you mean {' or '.join(near)}? There" if near else "there"
            raise ConfigError(
                f"{self.key}={name}: no such {self.kind}; {guess} are {', '.join(self)}; "
                f"a {self.kind} of a plugin needs --plugin FILE"
            )
        return self.known[name]

    def __contains__(self, name: object) -> bool:
        """Whether a name is declared, here or by an entry point that is not imported yet."""
        return name in self.known or (
            isinstance(name, str) and bool(_entry_points(self.group, name))
        )

    def __iter__(self) -> Iterator[str]:
        """All names: those of moebench in its order, then the others, sorted."""
        others = {point.name for point in _entry_points(self.group)} | self.known.keys()
        yield from self._shipped
        yield from sorted(others - {*self._shipped})

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def register(
        self, name: str, meaning: str, *more: Any, **fields: Any
    ) -> Callable[[Target], Target]:
        """Declare a class under a name, as a decorator.

        Args:
            name: a word in lower case.
            meaning: one line.
            more: further fields of the declaration, in its order.
            fields: further fields by name; `target` and `plugin` are left out.

        Raises:
            ConfigError: for a name that is declared already, or that is not a lower-case word.
        """
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"the {self.kind} {name!r}: must be lower-case letters, digits and underscores, "
                "with a letter first; rename it"
            )

        def declare(target: Target) -> Target:
            before = self.known.get(name)
            if before and (before.plugin is None or before.plugin != _loading):
                raise ConfigError(f"the {self.kind} {name} already exists; rename it")
            plugin = _loading or target.__module__
            self.known[name] = self._make(name, meaning, target, *more, plugin=plugin, **fields)
            return target

        return declare


_registries: list[Registry] = []
_loading: str | None = None  # `module@hash` while a plugin is imported
_plugins: list[str] = []  # as they were named


def plugins() -> list[str]:
    """What `load_plugin` was given, for processes that this one starts."""
    return list(_plugins)


def content_of(plugin: str | None) -> str:
    """The hash of a plugin's text, from `module@hash`; "" for None."""
    return (plugin or "").rpartition("@")[2]


def load_plugin(module: str) -> None:
    """Import a module that declares scopes or methods, which then can be chosen by name.

    Args:
        module: a dotted name, which may lie in the working directory, or the path of a .py file.

    Raises ConfigError if there is no such module, if its import fails, or if it declares nothing.
    """
    subject = f"--plugin {module}"
    if not _declares(_import(_find(module, subject), subject)):
        raise ConfigError(
            f"{subject}: declares no scope and no method; put @register(...) on its class"
        )
    _plugins.append(str(Path(module).resolve()) if module.endswith(".py") else module)


def load_function(target: str) -> Callable[..., Any]:
    """The function or class of `MODULE:NAME`, where the module is a dotted name or a .py file.

    Raises ConfigError if there is none, or if the import of its module fails.
    """
    module, _, name = target.rpartition(":")
    if not (module and name):
        raise ConfigError(f"{target}: must be MODULE:FUNCTION or FILE.py:FUNCTION")
    spec = _find(module, target)
    if getattr(sys.modules.get(spec.name), "__file__", None) != spec.origin:
        _import(spec, target)
    found = sys.modules[spec.name]
    function = getattr(found, name, None)
    if not callable(function):
        near = nearest(name, vars(found))
        guess = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"{target}: {module} has no function {name}{guess}")
    return function


def _declares(plugin: str) -> bool:
    return any(
        declaration.plugin == plugin
        for registry in _registries
        for declaration in registry.known.values()
    )


def _find(module: str, subject: str) -> importlib.machinery.ModuleSpec:
    path = Path(module)
    try:
        if module.endswith(".py"):
            spec = importlib.util.spec_from_file_location(path.stem, path)
            spec = spec if path.is_file() else None
        else:
            here = str(Path.cwd())
            if here not in sys.path:
                sys.path.append(here)  # last, so that it shadows nothing
            spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{subject}: cannot be found ({error}); name a module or a file"
        ) from None
    if spec is None or spec.origin is None or spec.loader is None:
        raise ConfigError(f"{subject}: there is no such module; name a module or a .py file")
    return spec


def _import(spec: importlib.machinery.ModuleSpec, subject: str) -> str:
    """Import a module once; returns its name and the hash of its text as `module@hash`."""
    global _loading
    assert spec.origin is not None
    assert spec.loader is not None
    digest = hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:10]
    plugin = f"{spec.name}@{digest}"
    if _declares(plugin):
        return plugin
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import does, for dataclasses and pickles
    _loading = plugin
    try:
        spec.loader.exec_module(module)
    except ConfigError as error:
        del sys.modules[spec.name]
        raise ConfigError(f"{subject}: {error}") from None
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"{subject}: raises {why} when it is imported; correct the module"
        ) from None
    finally:
        _loading = None
    return plugin


def _entry_points(group: str, name: str | None = None) -> Any:
    from importlib.metadata import entry_points  # slow, and rarely needed

    return entry_points(group=group) if name is None else entry_points(group=group, name=name)
