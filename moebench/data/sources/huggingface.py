"""A dataset of the Hugging Face Hub, or a local folder that `datasets` can read.

A dataset of the Hub needs the commit to take, so that the same config means the same text. It is
only read as data: versions of `datasets` that could run code from it are refused.
"""

import importlib.util
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from moebench.config.schema import DataConfig
from moebench.data.sources.document import Document, Unit
from moebench.data.sources.files import Columns, check_columns, make_row, reading
from moebench.disk import expanded, read_bytes, regular_status
from moebench.errors import DataError, apply_to_all

HUB = "https://huggingface.co"
TIMEOUT = 5.0  # seconds to wait for it
COMMIT = re.compile(r"[0-9a-f]{40}")


class HuggingFace:
    """One split of a dataset; DataError if it cannot be used.

    Args:
        config: only `name`, `config`, `split`, `revision`, `streaming`, `max_bytes` and the columns
            are used.
    """

    keeps_duplicates = False
    notes = ()

    def __init__(self, config: DataConfig):
        self.label = f"data.name={config.name}"
        self.config = config
        self.columns = Columns(config.text_column, config.domain_column)
        if importlib.util.find_spec("datasets") is None:
            raise DataError(
                f"{self.label}: needs the datasets library; pip install 'moebench[huggingface]'"
            )
        assert config.name, "checked by the config"
        path = expanded(config.name)
        self.folder = path if path.is_dir() else None
        if self.folder is not None and "://" in _header(self.folder):
            raise DataError(
                f"{self.label}: its README.md names data on the network, which a folder of text "
                "must not fetch; remove those lines"
            )
        if self.folder is None and not COMMIT.fullmatch(config.revision or ""):
            revision = "null" if config.revision is None else config.revision
            raise DataError(
                f"data.revision={revision}: is not a commit, and a dataset that can change is "
                "not a basis for a comparison; give the 40 digits that the dataset's page shows "
                "under Files, History"
            )

    @property
    def domains(self) -> tuple[str, ...] | None:
        if self.columns.domain is not None:
            return None
        assert self.config.name
        return (self.config.name.rstrip("/").rsplit("/", 1)[-1],)

    def fingerprint(self, domains: Sequence[str] | None) -> dict[str, Any]:
        keys = ("name", "config", "split", "revision", "max_bytes")
        inputs = {key: getattr(self.config, key) for key in keys}
        if self.folder is not None:
            paths = sorted(path for path in self.folder.rglob("*") if not path.is_dir())
            inputs["name"] = str(self.folder.resolve())
            inputs["files"] = dict(apply_to_all(self._status, paths))
        return {"source": "huggingface", "columns": list(self.columns), **inputs}

    def _status(self, path: Path) -> tuple[str, list[int]]:
        """The path, size and time of a file; DataError for what is no regular file."""
        assert self.folder is not None
        with reading(path):
            status = regular_status(path)
        return path.relative_to(self.folder).as_posix(), [status.st_size, status.st_mtime_ns]

    def units(self, domains: Sequence[str] | None) -> list[Unit]:
        return [Unit((self.label,), self.config.max_bytes or 1)]

    def documents(self, unit: Unit) -> Iterator[Document]:
        left = self.config.max_bytes
        default = (self.domains or ("",))[0]
        rows = self._rows()
        for number in count(1):
            row = self._try(next, rows, None)
            if row is None or (left is not None and left <= 0):
                return
            assert isinstance(row, Mapping)
            if number == 1:
                check_columns([*row], self.columns, self.label)
            name, text, domain = make_row(row, self.columns, f"{self.label}, row {number}")
            if not text:
                continue
            if left is not None:
                left -= len(text)
            yield Document(name, text, domain or default)

    def licences(self, domains: Sequence[str]) -> dict[str, str]:
        """As the dataset's card states it; a folder's card is its README.md."""
        card = _card(self.folder) if self.folder else self._hub_card()
        return dict.fromkeys(domains, card)

    def _rows(self) -> Iterator[Any]:
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity_error()
        if int(datasets.__version__.split(".")[0]) < 4:
            raise DataError(
                f"{self.label}: datasets {datasets.__version__} can run code from a dataset; "
                "install datasets 4 or newer"
            )
        if self.folder is None:
            _check_network(self.label)
        config = self.config
        loaded = self._try(
            datasets.load_dataset,
            str(self.folder or config.name),
            config.config,
            split=config.split,
            revision=None if self.folder else config.revision,
            streaming=config.streaming,
        )
        return iter(loaded)

    def _try(self, call: Any, *arguments: Any, **options: Any) -> Any:
        """Call the library; raise DataError with one line for any error."""
        try:
            return call(*arguments, **options)
        except DataError:
            raise
        except Exception as error:  # of many types: the library's, Arrow's, fsspec's, the hub's
            reason = " ".join((str(error) or type(error).__name__).split())[:200].rstrip(".")
            raise DataError(
                f"{self.label}: cannot be read ({reason}); correct data.name, data.config, "
                "data.split or data.revision"
            ) from None

    def _hub_card(self) -> str:
        import datasets

        try:
            builder = datasets.load_dataset_builder(
                str(self.config.name), self.config.config, revision=self.config.revision
            )
        except Exception:  # the text has been read; do without the card
            return ""
        return builder.info.license or ""


def _card(folder: Path) -> str:
    """The licence in the YAML at the beginning of a dataset's README.md."""
    licence = re.search(r"^license:\s*(.+)$", _header(folder), re.MULTILINE)
    return licence[1].strip() if licence else ""


def _header(folder: Path) -> str:
    """The YAML at the beginning of a dataset's README.md, from which the library takes files."""
    try:
        text = read_bytes(folder / "README.md").decode(errors="replace")
    except (OSError, ValueError):
        return ""
    head = re.match(r"\s*---\s*\n(.*?)\n---", text, re.DOTALL)
    return head[1] if head else ""


def _check_network(label: str) -> None:
    """Raise DataError at once if the Hub cannot be reached: the library would try for minutes."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return  # the library's cache may be enough, and it reports if not
    proxies = getproxies()
    address = urlsplit(proxies.get("https") or os.environ.get("HF_ENDPOINT") or HUB)
    host, port = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
    problems: list[str] = ["it does not answer"]

    def reach() -> None:
        try:
            socket.create_connection((host, port), TIMEOUT).close()
            problems.clear()
        except OSError as error:
            problems[:] = [error.strerror or str(error)]

    thread = threading.Thread(target=reach, daemon=True)  # a name server may be slow
    thread.start()
    thread.join(TIMEOUT)
    if problems:
        raise DataError(
            f"{label}: {host} cannot be reached ({problems[0]}); connect this machine, give a "
            "folder with the dataset as data.name, or use data=folder"
        )
