"""The trackers: a small adapter for the library of each, which is imported only when it is named.

What a library reads from its environment stays the user's: `WANDB_MODE` and `WANDB_PROJECT`,
`MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME`, `TRACKIO_DIR` and `TRACKIO_SPACE_ID`.
"""

import importlib
import io
import os
import re
import sys
from contextvars import Context
from typing import Any

from moebench.disk import reason
from moebench.errors import ConfigError, remedy
from moebench.tensorboard.pictures import Picture
from moebench.tracking.feed import About, Tracker

PROJECT = "moebench"
MOST_METRICS, MOST_PARAMS, LONGEST_PARAM = 1000, 100, 6000  # of one request to MLflow


def load_library(name: str, option: str = "--track") -> Any:
    """The library of a tracker.

    Args:
        option: what the user typed, for errors.

    Raises ConfigError for an unknown name, and a library that is missing.
    """
    if name not in TRACKERS:
        raise ConfigError(f"{option} {name}: is no tracker; {remedy(name, [*TRACKERS])}")
    try:
        library = importlib.import_module(name)
    except ImportError:
        library = None
    # a folder of that name in the working directory passes for a package
    if getattr(library, "__file__", None) is None:
        raise ConfigError(
            f"{option} {name}: the library is not installed; run pip install 'moebench[{name}]'"
        )
    return library


def open_tracker(name: str, option: str = "--track") -> Tracker:
    """A tracker that can be reached.

    Args:
        option: what the user typed, for errors.

    Raises ConfigError as `load_library`, and for no login and no network.
    """
    library = load_library(name, option)
    try:
        return TRACKERS[name](library)
    except ConfigError as error:
        raise ConfigError(f"{option} {name}: {error}") from None
    except Exception as error:  # the libraries raise errors of many types
        raise ConfigError(
            f"{option} {name}: cannot be reached ({reason(error)}); {WAY[name]}"
        ) from None


WAY = {
    "wandb": "check the network, or set WANDB_MODE=offline and run wandb sync later",
    "mlflow": "check MLFLOW_TRACKING_URI, or set it to sqlite:///mlflow.db",
    "trackio": "check the network, or unset TRACKIO_SPACE_ID",
}


class Wandb:
    """Weights & Biases. A run of the same id is overwritten there."""

    name = "wandb"

    def __init__(self, library: Any) -> None:
        self._library = library
        mode = os.environ.get("WANDB_MODE", "online")
        if mode not in ("offline", "dryrun", "disabled") and not library.login(
            prompt=False, verify=True
        ):
            raise ConfigError(
                "is not logged in; run wandb login, or set WANDB_MODE=offline and run wandb sync "
                "later"
            )

    def begin(self, about: About) -> "WandbRun":
        settings = self._library.Settings(
            reinit="create_new",  # runs of a sweep go side by side
            silent=True,
            console="off",
            x_disable_stats=True,
            disable_job_creation=True,
            init_timeout=30,
        )
        run = self._library.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=about.identity,
            name=about.name,
            group=about.arm[:128],
            config={**about.config, "moebench": about.facts},
            settings=settings,
        )
        return WandbRun(self._library, run)


class WandbRun:
    def __init__(self, library: Any, run: Any) -> None:
        self._library, self._run = library, run

    def row(
        self, step: int, metrics: dict[str, float], pictures: dict[str, Picture], time: float
    ) -> None:
        shown = {name: self._library.Image(_image(each)) for name, each in pictures.items()}
        self._run.log({**metrics, **shown, "_timestamp": time}, step=step)

    def end(self, state: str, summary: dict[str, float]) -> None:
        self._run.summary.update({f"final/{key}": value for key, value in summary.items()})
        self._run.finish(exit_code=0 if state == "done" else 1)


class Mlflow:
    """MLflow. A run of the same identity is deleted there; MLflow can restore it."""

    name = "mlflow"

    def __init__(self, library: Any) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self._library, self._client = library, library.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        self._experiment = found.experiment_id if found else self._client.create_experiment(name)

    def begin(self, about: About) -> "MlflowRun":
        wanted = f"tags.`moebench.identity` = '{about.identity}'"
        for old in self._client.search_runs([self._experiment], wanted):
            self._client.delete_run(old.info.run_id)
        tags = {f"moebench.{key}": value for key, value in about.facts.items()}
        run = self._client.create_run(
            self._experiment,
            start_time=round(1000 * about.start),
            run_name=about.name,
            tags={**tags, "moebench.identity": about.identity, "moebench.arm": about.arm},
        )
        made = MlflowRun(self._library, self._client, run.info.run_id)
        made.params(about.config)
        return made


class MlflowRun:
    def __init__(self, library: Any, client: Any, run_id: str) -> None:
        self._entities, self._client, self._id = library.entities, client, run_id

    def params(self, config: dict[str, Any]) -> None:
        made = [
            self._entities.Param(_plain(key), str(value)[:LONGEST_PARAM])
            for key, value in config.items()
        ]
        for begin in range(0, len(made), MOST_PARAMS):
            self._client.log_batch(self._id, params=made[begin : begin + MOST_PARAMS])

    def row(
        self, step: int, metrics: dict[str, float], pictures: dict[str, Picture], time: float
    ) -> None:
        made = [
            self._entities.Metric(_plain(key), float(value), round(1000 * time), step)
            for key, value in metrics.items()
        ]
        for begin in range(0, len(made), MOST_METRICS):
            self._client.log_batch(self._id, metrics=made[begin : begin + MOST_METRICS])
        for name, picture in pictures.items():
            self._client.log_image(self._id, _image(picture), key=_plain(name), step=step)

    def end(self, state: str, summary: dict[str, float]) -> None:
        for key, value in summary.items():
            self._client.set_tag(self._id, f"final.{_plain(key)}", f"{value:.6g}")
        status = {"done": "FINISHED", "failed": "FAILED"}.get(state, "KILLED")
        self._client.set_terminated(self._id, status)


def _plain(name: str) -> str:
    """A name of the characters that MLflow takes."""
    return re.sub(r"[^\w\-./ ]", "_", name)


class Trackio:
    """Trackio. A run of the same name is deleted there."""

    name = "trackio"

    def __init__(self, library: Any) -> None:
        self._library = library
        if os.environ.get("TRACKIO_SPACE_ID"):
            hub = importlib.import_module("huggingface_hub")
            if hub.get_token() is None:
                raise ConfigError("is not logged in; run hf auth login, or unset TRACKIO_SPACE_ID")
            hub.whoami()

    def begin(self, about: About) -> "TrackioRun":
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        for old in self._runs(project):
            if old.name == about.name:
                old.delete()
        _mute(self.name)
        run = Context().run(  # else it ends the run before, which goes on beside this one
            self._library.init,
            project,
            name=about.name,
            group=about.arm,
            config={**about.config, "moebench": about.facts},
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return TrackioRun(self._library, run)

    def _runs(self, project: str) -> list[Any]:
        try:
            return list(self._library.Api().runs(project))
        except ValueError:  # there is no such project yet
            return []


class TrackioRun:
    def __init__(self, library: Any, run: Any) -> None:
        self._library, self._run = library, run
        self._step = 0

    def row(
        self, step: int, metrics: dict[str, float], pictures: dict[str, Picture], time: float
    ) -> None:
        shown = {name: self._library.Image(_image(each)) for name, each in pictures.items()}
        self._run.log({**metrics, **shown}, step=step)
        self._step = step

    def end(self, state: str, summary: dict[str, float]) -> None:
        self._run.log({f"final/{key}": value for key, value in summary.items()}, step=self._step)
        _mute(Trackio.name)
        self._run.finish()


def _mute(package: str) -> None:
    """Let a package print nothing, as Trackio does on how to open its dashboard.

    Its modules get a `print` of their own: to redirect stdout would take what the run prints, too.
    """
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] == package and module is not None:
            vars(module)["print"] = lambda *_, **__: None


def _image(picture: Picture) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(picture.png)).convert("RGB")


TRACKERS: dict[str, Any] = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}
