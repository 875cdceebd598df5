"""A corpus on disk: the tokens of each domain, prepared once and then mapped into memory.

A folder of the cache (`moebench.data.making.cache`) holds the shards of some domains, from one
source and one tokenizer. Tokens are uint8, uint16 or uint32, as the vocabulary needs:

    <domain>.train.bin        tokens of the documents, in the order of a hash of their text
    <domain>.valid.bin        the same for validation: the documents of half `tune`, then of `test`
    <domain>.<split>.idx.npy  int64 [documents + 1], where documents begin, and the end
    tokenizer.json            the tokenizer, unless tokens are bytes
    manifest.json             counts, overlap, licences, sizes, checksums, and the inputs
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moebench.config.schema import DataConfig
from moebench.data.making import retokenize, shards
from moebench.data.making.cache import (
    Manifest,
    check,
    discard,
    folder_of,
    make_folder,
    read_manifest,
    remembered,
    to_json,
)
from moebench.data.making.shards import bin_path
from moebench.data.making.trigram import trigram_bits
from moebench.data.making.workers import Reporter
from moebench.data.sources import choose_domains, choose_heldout, downloads, open_source
from moebench.data.sources.document import stem
from moebench.data.tokenizer import (
    BYTES,
    FILE,
    ByteTokenizer,
    Subwords,
    Tokenizer,
    Tokens,
    smallest_type,
)
from moebench.errors import DataError
from moebench.machine import usable_cores

SAMPLE_CHARACTERS = 60
SAMPLE_TOKENS = 1000  # read for a sample; many may be white space
FEW_DOCUMENTS = 10  # for validation; with fewer, one unusual document decides a domain's loss
SMALL_BYTES = 24_000_000  # reading a source of this size takes less time than starting processes

Half = Literal["tune", "test"]


class Corpus:
    """Some or all domains of a prepared cache.

    Attributes:
        directory: the folder of the cache.
        domains: the domains to train on, in the order in which batches number them.
        heldout: the domains for validation only.
        manifest: manifest.json, reduced to these domains.
        content_hash: hex digest that depends on the names and tokens of these domains alone.
        trigram_bits: bits a byte of a byte trigram (`moebench.data.making.trigram`) on the half
            `test` of validation, mean over `domains`, whatever the tokenizer.
        tokenizer: encoder of the text.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        domains: Sequence[str],
        heldout: Sequence[str],
        trigram_bits: float,
    ):
        self.directory = directory
        self.trigram_bits = trigram_bits
        self.domains = tuple(domains)
        self.heldout = tuple(heldout)
        self.tokenizer = _tokenizer(directory, manifest)
        self.manifest = _reduced(manifest, (*domains, *heldout))
        self.content_hash: str = self.manifest["content_hash"]
        self._type = smallest_type(self.vocab_size)
        self._mapped: dict[str, Tokens] = {}

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def train(self, domain: str) -> Tokens:
        """All training tokens [tokens] of a domain, mapped into memory."""
        return self._tokens(f"{stem(domain)}.train.bin")

    def valid(self, domain: str, half: Half) -> Tokens:
        """The validation tokens [tokens] of one half of a domain's documents."""
        cut = self.manifest["domains"][domain]["valid"]["tune_tokens"]
        tokens = self._tokens(f"{stem(domain)}.valid.bin")
        return tokens[:cut] if half == "tune" else tokens[cut:]

    def valid_documents(self, domain: str, half: Half) -> npt.NDArray[np.int64]:
        """[documents] first token of each document of one half, counted from the half's start."""
        cut = self.manifest["domains"][domain]["valid"]["tune_tokens"]
        begins = np.load(self.directory / f"{stem(domain)}.valid.idx.npy")[:-1]
        return begins[begins < cut] if half == "tune" else begins[begins >= cut] - cut

    def describe(self) -> list[dict[str, Any]]:
        """One row per domain: the sizes of both splits, and the beginning of its text."""
        rows = []
        for domain in sorted(self.manifest["domains"]):
            counts = self.manifest["domains"][domain]
            train, valid = counts["train"], counts["valid"]
            ends = np.load(self.directory / f"{stem(domain)}.train.idx.npy", mmap_mode="r")
            tokens = self.train(domain)[: min(ends[1], SAMPLE_TOKENS)]
            rows.append(
                {
                    "domain": domain,
                    "train_documents": train["documents"],
                    "train_mb": train["bytes"] / 1e6,
                    "train_tokens": train["tokens"],
                    "valid_documents": valid["documents"],
                    "valid_kb": valid["bytes"] / 1e3,
                    "duplicates": counts["duplicates"],
                    "overlap": counts["overlap"],
                    "licence": counts["licence"],
                    "sample": " ".join(self.tokenizer.decode(tokens).split())[:SAMPLE_CHARACTERS],
                }
            )
        return rows

    def check(self) -> None:
        """Compare every file with its checksum; discard the cache and raise DataError on damage."""
        check(self.directory, self.manifest)

    def _tokens(self, name: str) -> Tokens:
        if name not in self._mapped:
            mapped = np.memmap(self.directory / name, self._type, mode="r")
            self._mapped[name] = mapped.view(np.ndarray)  # memmap's own indexing is slow
        return self._mapped[name]


def prepare(
    config: DataConfig,
    *,
    progress: Callable[[str], None] | None = None,
    bar: Callable[[str, float], None] | None = None,
    processes: int | None = None,
    download: bool = True,
) -> Corpus:
    """The corpus of a config. It is read from the cache or, the first time, made and cached.

    Args:
        config: only the keys of the source and the tokenizer, `domains` and `heldout` are used.
        progress: gets a line for each warning, and for each stage of the work that the cache does
            not spare.
        bar: gets the current work and the share of it that is done, often.
        processes: at most; one per core by default.
        download: whether text may come from the network, which only the user's own words allow.

    Raises DataError for text that is missing, broken or too short, and for a cache that cannot be
    written.
    """
    reporter = Reporter(progress, bar)
    directory, manifest = _prepare_bytes(config, processes, reporter, download)
    chosen = choose_domains(config, sorted(manifest["domains"]))
    heldout = choose_heldout(config, chosen)
    domains = tuple(name for name in chosen if name not in heldout)
    trigram = _trigram(directory, manifest, sorted(domains), reporter)
    if config.tokenizer != BYTES:
        manifest = _reduced(manifest, chosen)
        directory, manifest = _prepare_tokens(
            config, directory, manifest, domains, processes, reporter
        )
    corpus = Corpus(directory, manifest, domains, heldout, trigram)
    for warning in _warnings(corpus):
        reporter.say(f"warning: {warning}")
    return corpus


def _warnings(corpus: Corpus) -> Iterator[str]:
    """What works, but means less than it seems."""
    if len(corpus.domains) == 1:
        yield f"all text is of one domain, {corpus.domains[0]}: data.homogeneity has no effect"
    counts = {
        domain: about["valid"]["documents"] for domain, about in corpus.manifest["domains"].items()
    }
    few = {domain: count for domain, count in counts.items() if count < FEW_DOCUMENTS}
    if few:
        domains = ", ".join(f"{domain} ({count})" for domain, count in few.items())
        yield (
            f"fewer than {FEW_DOCUMENTS} documents for validation: {domains}; the losses there "
            "depend on single documents, so add text"
        )


def _prepare_bytes(
    config: DataConfig, processes: int | None, reporter: Reporter, download: bool
) -> tuple[Path, Manifest]:
    """The shards of bytes of a source: of all its domains, or of the chosen ones."""
    source = open_source(config)
    for note in source.notes:
        reporter.say(f"warning: {note}")
    everything = source.domains

    def directory_of(domains: Sequence[str] | None) -> Path:
        made_from = ["bytes", ByteTokenizer().hash, domains, source.fingerprint(domains)]
        return folder_of(config.source, made_from)

    domains, directory = everything, directory_of(everything)
    if everything is not None and config.domains is not None:
        chosen = choose_domains(config, everything)
        if not read_manifest(directory):  # a cache of all domains includes the chosen ones
            domains, directory = chosen, directory_of(chosen)

    def build(folder: Path) -> Manifest:
        if not download and (remote := downloads(config)):
            raise DataError(
                f"data.name={remote}: is not on this machine, and a record's config downloads "
                "nothing; moebench data prepare with its data.* keys fetches it"
            )
        names = f"{', '.join(domains)} " if domains is not None else ""
        reporter.say(f"{source.label}: preparing {names}in {directory}")
        size = sum(unit.size for unit in source.units(domains))
        count = processes or (usable_cores() if size > SMALL_BYTES else 1)
        return shards.build(folder, source, domains, processes=count, reporter=reporter)

    return directory, make_folder(directory, build, reporter.say)


def _prepare_tokens(
    config: DataConfig,
    text: Path,
    manifest: Manifest,
    trained: Sequence[str],
    processes: int | None,
    reporter: Reporter,
) -> tuple[Path, Manifest]:
    """The shards of tokens that a tokenizer makes from shards of bytes; see `retokenize.build`."""
    made_from = ["tokens", manifest["content_hash"], retokenize.made_from(config, trained)]
    directory = folder_of("tokens", made_from)

    def build(folder: Path) -> Manifest:
        reporter.say(f"data.tokenizer={config.tokenizer}: encoding in {directory}")
        size = sum(counts["train"]["bytes"] for counts in manifest["domains"].values())
        count = processes or (usable_cores() if size > SMALL_BYTES // 10 else 1)
        return retokenize.build(
            folder, config, text, manifest, trained, processes=count, reporter=reporter
        )

    return directory, make_folder(directory, build, reporter.say)


def _trigram(
    directory: Path, manifest: Manifest, domains: Sequence[str], reporter: Reporter
) -> float:
    """The trigram's bits a byte, from the shards of bytes of some domains."""

    def compute() -> float:
        reporter.show("fitting a trigram", 1)
        train, valid = (
            [bin_path(directory / f"{stem(domain)}.{split}") for domain in domains]
            for split in ("train", "valid")
        )
        tuned = [manifest["domains"][domain]["valid"]["tune_tokens"] for domain in domains]
        return trigram_bits(train, valid, tuned)

    key = f"trigram bits a byte of {to_json(list(domains)).decode()}"
    return remembered(directory, manifest, key, compute, reporter.say)


def _tokenizer(directory: Path, manifest: Mapping[str, Any]) -> Tokenizer:
    if manifest["tokenizer"]["name"] == BYTES:
        return ByteTokenizer()
    path = directory / FILE
    tokenizer = Subwords(path.read_bytes(), str(path))
    if tokenizer.hash != manifest["tokenizer"]["hash"]:
        discard(directory)
        raise DataError(
            f"{path}: was changed; the cache is discarded, make it again with "
            "`moebench data prepare`"
        )
    return tokenizer


def _reduced(manifest: Mapping[str, Any], domains: Iterable[str]) -> Manifest:
    """A manifest reduced to some of its domains, with the hash of their content."""
    chosen = sorted(domains)
    ends = [f"{split}.{end}" for split in ("train", "valid") for end in ("bin", "idx.npy")]
    kept = {f"{stem(domain)}.{end}" for domain in chosen for end in ends} | {FILE}
    files = {name: file for name, file in manifest["files"].items() if name in kept}
    content = {
        domain: [files[f"{stem(domain)}.{split}.bin"]["sha256"] for split in ("train", "valid")]
        for domain in chosen
    }
    digest = hashlib.sha256(to_json([manifest["tokenizer"]["hash"], content])).hexdigest()
    return {
        **manifest,
        "domains": {domain: manifest["domains"][domain] for domain in chosen},
        "files": files,
        "content_hash": digest,
    }
