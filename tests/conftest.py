"""One thread a test, a data cache of this session's own, and a small folder of text."""

import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping
import numpy as np
import pytest

from moebench.device import DRIVERS

if TYPE_CHECKING:
    from tests.processors import Same

# Before torch is imported. Two tests with several threads each on two cores slow each other down a
# hundredfold: a thread that spins while it waits keeps the others from the cores.
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "KMP_BLOCKTIME": "0",
}
if not any(driver.exists() for driver in DRIVERS):
    SETTINGS["TRITON_INTERPRET"] = "1"  # Triton's kernels run on the CPU, where there is no GPU
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)


# Tests that check the shapes in signatures, which doubles the time of a small step: those of the
# packages themselves, and those in which every preset takes a step and a whole run is made.
SHAPES_CHECKED = ("balance", "metrics", "model", "test_conf.py", "experiment")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check shapes where that is wanted; skip tests marked `gpu` where there is none."""
    first = item.path.relative_to(Path(__file__).parent).parts[0]
    jaxtyping.config.update("jaxtyping_disable", first not in SHAPES_CHECKED)
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "run only the tests that take `same`, and let it compare to the bit"
    parser.addoption("--bits", action="store_true", help=text)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "same" in metafunc.fixturenames:
        to_the_bit = metafunc.config.getoption("bits")
        ways = ["bits"] if to_the_bit else ["this processor", "pretended processor"]
        metafunc.parametrize("same", ways, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("bits"):
        items[:] = [item for item in items if "same" in getattr(item, "fixturenames", ())]


def pytest_collection_finish() -> None:
    """Modules and tests stay until the end: the collector of garbage need not visit them."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def same(request: pytest.FixtureRequest) -> Iterator["Same"]:
    """Compare results that differ only in the shapes of their products; see `processors.py`."""
    from tests.processors import PretendedProcessor, Same

    with PretendedProcessor() if request.param == "pretended processor" else nullcontext():
        yield Same(exact=request.param == "bits")


DOMAINS = {"digits": "0123456789 ", "letters": "abcdefghij ", "shapes": "<>[]{}()-_ "}


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data cache, shared by the tests of a session and its child processes."""
    path = tmp_path_factory.mktemp("cache")
    before = os.environ.get("MOEBENCH_CACHE")
    os.environ["MOEBENCH_CACHE"] = str(path)
    yield path
    if before is None:
        del os.environ["MOEBENCH_CACHE"]
    else:
        os.environ["MOEBENCH_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def preloaded() -> None:
    """Processes of tests begin with torch imported."""
    from tests.processes import choose_preloaded

    choose_preloaded()


@pytest.fixture
def no_fallback() -> Iterator[None]:
    """Operations without a vmap rule raise, where they would loop over the arms and warn."""
    import torch

    torch._C._functorch._set_vmap_fallback_enabled(False)  # pyright: ignore
    yield
    torch._C._functorch._set_vmap_fallback_enabled(True)  # pyright: ignore


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains, each of characters of its own: enough for some hundred sequences of 32."""
    folder = tmp_path_factory.mktemp("text")
    for number, (domain, letters) in enumerate(DOMAINS.items()):
        draw = np.random.default_rng(number)
        (folder / domain).mkdir()
        for split, documents in (("train", 60), ("valid", 20)):
            texts = ["".join(draw.choice(list(letters), 300)) for _ in range(documents)]
            lines = [json.dumps({"text": text}) + "\n" for text in texts]
            (folder / domain / f"{split}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, dict[str, str]], None]:
    """Pretend that this process is in some control groups, whose files say this."""

    def make(own: str, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "own").write_text(own)
        monkeypatch.setattr("moebench.machine.CGROUPS", tmp_path / "groups")
        monkeypatch.setattr("moebench.machine.OWN_CGROUPS", tmp_path / "own")

    return make
