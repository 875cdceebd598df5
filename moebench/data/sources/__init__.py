"""Sources of text: open the one that a config names, and choose its domains."""

from collections.abc import Sequence

from moebench.config.compose import sources_of
from moebench.config.schema import DataConfig
from moebench.data.sources.document import Document, Source
from moebench.data.sources.files import Columns
from moebench.data.sources.folder import Folder
from moebench.data.sources.huggingface import HuggingFace
from moebench.data.sources.installed import Installed
from moebench.data.sources.mixture import Mixture
from moebench.data.sources.synthetic import Synthetic
from moebench.disk import expanded
from moebench.errors import DataError, nearest

__all__ = [
    "Document",
    "Folder",
    "Installed",
    "Source",
    "choose_domains",
    "choose_heldout",
    "downloads",
    "open_source",
]


def open_source(config: DataConfig) -> Source:
    """The source of `data.source`; DataError if it cannot be used."""
    if config.source == "folder":
        assert config.path, "checked by the config"
        return Folder(config.path, Columns(config.text_column, config.domain_column))
    if config.source == "huggingface":
        return HuggingFace(config)
    if config.source == "synthetic":
        return Synthetic(config.num_domains, config.overlap, config.text_seed)
    if config.source == "mixture":
        return Mixture([_part(part) for part in sources_of(config)])
    return Installed()


def downloads(config: DataConfig) -> str:
    """The first dataset of the Hub that a config names; "" if its text is on this machine."""
    if config.source == "mixture":
        return next(filter(None, map(downloads, sources_of(config))), "")
    if config.source != "huggingface" or expanded(config.name or "").is_dir():
        return ""
    return config.name or ""


def _part(config: DataConfig) -> tuple[Source, tuple[str, ...] | None]:
    source = open_source(config)
    if config.domains is None or source.domains is None:
        return source, tuple(sorted(config.domains)) if config.domains else None
    return source, choose_domains(config, source.domains)


def choose_domains(config: DataConfig, available: Sequence[str]) -> tuple[str, ...]:
    """The domains of `data.domains`, or all, sorted; DataError for a wrong name."""
    if config.domains is None:
        return tuple(sorted(available))
    if not config.domains:
        raise DataError("data.domains=[]: picks no domain; leave it out to take all")
    return _chosen("data.domains", config.domains, available)


def choose_heldout(config: DataConfig, available: Sequence[str]) -> tuple[str, ...]:
    """The domains of `data.heldout`, sorted; DataError for a wrong name, and if none is left."""
    heldout = _chosen("data.heldout", config.heldout, available)
    if len(heldout) == len(available):
        raise DataError(
            f"data.heldout=[{','.join(heldout)}]: leaves no domain to train on; name fewer"
        )
    return heldout


def _chosen(key: str, names: Sequence[str], available: Sequence[str]) -> tuple[str, ...]:
    given = f"{key}=[{','.join(names)}]"
    for name in names:
        if name not in available:
            near = nearest(name, available)
            they = f"did you mean {near[0]!r}? They" if near else "they"
            raise DataError(
                f"{given}: the data have no domain {name!r}; {they} have {', '.join(available)}"
            )
        if names.count(name) > 1:
            raise DataError(f"{given}: names {name!r} twice; name it once")
    return tuple(sorted(names))
