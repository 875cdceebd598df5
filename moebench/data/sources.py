"""Which source of text a config asks for, and which of its domains."""

from difflib import get_close_matches

from moebench.config.schema import DataConfig
from moebench.data.document import Document, Source
from moebench.data.folder import Folder
from moebench.data.installed import Installed
from moebench.errors import DataError

__all__ = ["Document", "Folder", "Installed", "Source", "choose_domains", "open_source"]


def open_source(config: DataConfig) -> Source:
    """The source of `data.source` and `data.path`; DataError if the folder cannot be used."""
    if config.source == "installed":
        return Installed()
    if not config.path:
        raise DataError("data.path=null: data=folder needs a folder; add data.path=DIR")
    return Folder(config.path)


def choose_domains(config: DataConfig, source: Source) -> tuple[str, ...]:
    """The domains of `data.domains`, or all, sorted; DataError for a wrong name."""
    if config.domains is None:
        return source.domains
    chosen = tuple(config.domains)
    given = f"data.domains=[{','.join(chosen)}]"
    if not chosen:
        raise DataError(f"{given}: picks no domain; leave it out to take all")
    for name in chosen:
        if name not in source.domains:
            nearest = get_close_matches(name, source.domains, n=1, cutoff=0)[0]
            raise DataError(
                f"{given}: {source.label} has no domain {name!r}; did you mean {nearest!r}? "
                f"It has {', '.join(source.domains)}"
            )
        if chosen.count(name) > 1:
            raise DataError(f"{given}: names {name!r} twice; name it once")
    return tuple(sorted(chosen))
