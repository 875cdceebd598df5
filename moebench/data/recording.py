"""The recorded selections that a run replays: whether they are those of its text, and untouched."""

from pathlib import Path

from moebench.config.replayed import recording_of
from moebench.config.schema import ExperimentConfig
from moebench.data.batches import make_batches, sequences_hash
from moebench.data.corpus import Corpus
from moebench.errors import ConfigError, RecordError
from moebench.records import Record
from moebench.selections import FOLDER


def check_recording(config: ExperimentConfig, corpus: Corpus) -> None:
    """Raise ConfigError unless a run can replay the selections that its config names."""
    assert config.router.replay is not None, "checked by the config"
    path = config.router.replay
    if recording_of(config, path) != config.router.recording:
        raise ConfigError(
            f"router.replay={path}: has other selections now than the config says; restore them, "
            "or set router.recording={} to take what is there"
        )
    record = Record(Path(path))
    manifest, text = record.manifest(), corpus.content_hash
    recorded = manifest.get("data", {}).get("content_hash", "")
    first = sequences_hash(make_batches(corpus, config).batch(1))[:16]
    if recorded != text or manifest.get("first_sequences") != first:
        raise ConfigError(
            f"router.replay={path}: has selections for other text ({recorded[:10]}, and this run "
            f"reads {text[:10]}); use the same data.*, or replay another run"
        )
    files = sorted(f"{FOLDER}/{file.name}" for file in (record.path / FOLDER).iterdir())
    try:
        record.check_seal(*files)
    except RecordError as error:
        raise ConfigError(f"router.replay={path}: {error}") from None
