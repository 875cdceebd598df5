"""Processes of tests, forked from a server with torch imported: they start in a moment."""

import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any

from moebench.processes import starting
from moebench.study import child

CONTEXT = get_context("forkserver")


def choose_preloaded(module: str = "tests.preloaded") -> None:
    """Choose what the server imports that forks all processes of this session's tests."""
    child.PRELOADED[:] = [module]
    CONTEXT.set_forkserver_preload(child.PRELOADED)


class Process:
    """`function(*arguments)` in a process of its own, whose output goes to files.

    Its methods are those of `subprocess.Popen`; -N is the exit code of a process that a signal
    killed.

    Args:
        env: its environment; None: that of this process.
        cwd: its working directory; None: that of this process.
    """

    def __init__(
        self,
        function: Callable[..., object],
        arguments: Sequence[Any] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._output = Path(tempfile.mkdtemp(prefix="process"))
        weakref.finalize(self, shutil.rmtree, self._output, ignore_errors=True)
        for name in ("1", "2"):
            (self._output / name).touch()  # it may be killed before it does so itself
        place = str(cwd or os.getcwd())
        environ = dict(os.environ if env is None else env)
        words = (function, tuple(arguments), environ, place, str(self._output))
        with starting():
            forkserver.ensure_running()
            server = forkserver._forkserver._forkserver_address  # pyright: ignore
            self._process = CONTEXT.Process(target=_begin, args=(*words, server))
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        assert self.returncode is not None, f"still runs: {self.errors()}"
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait, and return what the process wrote on stdout and on stderr."""
        self.wait(timeout)
        return self.output(), self.errors()

    def output(self) -> str:
        """What is on stdout so far."""
        return (self._output / "1").read_text()

    def errors(self) -> str:
        """What is on stderr so far."""
        return (self._output / "2").read_text()

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def moebench(*words: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Process:
    """Start the command line."""
    return Process(_command_line, (words,), env, cwd)


def moebench_on_ranks(size: int, *words: str, cwd: Path | None = None) -> list[Process]:
    """Start the command line on some ranks, as torchrun does."""
    return [moebench(*words, env=env, cwd=cwd) for env in environments(size)]


def on_ranks(function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns on each of some ranks.

    Args:
        function: of a module, with arguments and results that `pickle` can write.
    """
    written = pickle.dumps(arguments)  # as multiprocessing does, but for tensors, which it shares
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, str(rank)) for rank in range(size)]
        ranks = [
            Process(_write_result, (place, function, written), env)
            for place, env in zip(places, environments(size), strict=True)
        ]
        for rank in ranks:
            _, errors = rank.communicate(300)
            assert rank.returncode == 0, errors
        return [pickle.loads(place.read_bytes()) for place in places]


def environments(size: int) -> list[dict[str, str]]:
    """What torchrun sets for each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    world = {**os.environ, **world, "GLOO_SOCKET_IFNAME": "lo"}
    return [{**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def _begin(
    function: Callable[..., object],
    arguments: tuple[Any, ...],
    environ: dict[str, str],
    place: str,
    output: str,
    server: str,
) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for number, path in enumerate((os.devnull, f"{output}/1", f"{output}/2")):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.chdir(place)
    os.environ.clear()
    os.environ.update(environ)
    if os.environ.get("OMP_NUM_THREADS") == "1" and not _customized():
        _share(server)  # as the server of a sweep would be
    function(*arguments)


def _customized() -> list[Path]:
    """The `sitecustomize.py` of this process, which each of its own processes must run as well."""
    folders = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return [file for folder in folders if (file := Path(folder, "sitecustomize.py")).exists()]


def _share(server: str) -> None:
    """Let the server fork this process's own processes as well, rather than a new one."""
    own: Any = forkserver._forkserver  # pyright: ignore
    own._forkserver_address = server
    own.ensure_running = lambda: None


def _command_line(words: Sequence[str]) -> None:
    """What `python -m moebench.cli` does, and `sitecustomize` before it, where there is one."""
    from moebench.cli import main

    for file in _customized():
        sys.path.insert(0, str(file.parent))
        exec(compile(file.read_text(), file, "exec"), {"__name__": "sitecustomize"})
    sys.argv = ["moebench", *words]
    main()


def _write_result(place: Path, function: Callable[..., Any], arguments: bytes) -> None:
    place.write_bytes(pickle.dumps(function(*pickle.loads(arguments))))


def until(condition: Callable[[], bool], seconds: float = 60, pause: float = 0.02) -> None:
    """Wait until `condition()` holds, which is asked again after each pause."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(pause)


def is_alive(pid: int) -> bool:
    """Whether a process exists, a zombie included."""
    return Path(f"/proc/{pid}").exists()
