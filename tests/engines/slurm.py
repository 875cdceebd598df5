"""SLURM with accounting on this machine, in one folder, for a test: no service, nothing below /etc.

Needs Debian's slurm-wlm, slurmdbd, munge and mariadb-server, or their like. As root or as a user,
who is then the only one that may hand in jobs.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Self

from moebench.machine import usable_cores

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "mariadb-install-db", "sbatch")
SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
# Folders of sockets must have short names: a path of a socket has at most 107 bytes.

CONF = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
KillWait=20
{accounting}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd}
AccountingStoragePass={folder}/munge.socket
"""
DBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdPort={slurmdbd}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""
DATABASE = """\
create database slurm_acct_db;
create user 'slurm'@'127.0.0.1' identified by 'slurm';
grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1';
"""


def missing() -> list[str]:
    """The programs that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]


class Slurm:
    """A cluster of this machine alone; a context manager that ends all of it.

    Args:
        folder: an empty one with a short name.
        accounts: whether it keeps accounts of its jobs.
        wrap: words before the command of `slurmd`, as for a namespace of its own.

    Attributes:
        environ: what a process needs to find the cluster.
    """

    def __init__(self, folder: Path, *, accounts: bool = True, wrap: tuple[str, ...] = ()) -> None:
        self.folder, self._accounts, self._wrap = folder, accounts, wrap
        self._processes: list[subprocess.Popen[bytes]] = []
        ports = {name: str(_free_port()) for name in ("ctld", "slurmd", "slurmdbd", "mariadb")}
        self._values: Mapping[str, str] = {
            **ports,
            "folder": str(folder),
            "host": socket.gethostname().split(".")[0],
            "user": getpass.getuser(),
            "cpus": str(usable_cores()),
        }
        self.environ = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf", "PATH": SEARCHED}

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def ask(self, *command: str) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(
            command, env=self.environ, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def _begin(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        accounting = ACCOUNTING.format(**self._values) if self._accounts else ""
        conf = CONF.format(accounting=accounting, **self._values)
        (self.folder / "slurm.conf").write_text(conf)
        self._start_munge()
        if self._accounts:
            self._start_database()
            dbd = self.folder / "slurmdbd.conf"
            dbd.write_text(DBD_CONF.format(**self._values))
            dbd.chmod(0o600)
            self._start("slurmdbd", "-D")
            self._until(lambda: self.ask("sacctmgr", "list", "cluster") is not None)
            self.ask("sacctmgr", "-i", "add", "cluster", "one")
        self._start("slurmctld", "-D", "-c")
        self._until(lambda: "UP" in self.ask("scontrol", "ping"))
        self._start(*self._wrap, "slurmd", "-D")
        self._until(lambda: self.ask("sinfo", "-h", "-o", "%T").strip() == "idle")

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        names = ("key-file", "socket", "pid-file", "log-file", "seed-file")
        words = [f"--{name}={self.folder}/munge.{name.split('-')[0]}" for name in names]
        self._start("munged", "--foreground", "--force", *words)
        self._until((self.folder / "munge.socket").exists)

    def _start_database(self) -> None:
        where = [f"--datadir={self.folder}/database", f"--user={self._values['user']}"]
        self._run("mariadb-install-db", "--no-defaults", *where)
        self._start(
            *("mariadbd", "--no-defaults", *where, "--bind-address=127.0.0.1"),
            *(f"--socket={self.folder}/mariadb.socket", f"--port={self._values['mariadb']}"),
            f"--pid-file={self.folder}/mariadb.pid",
        )
        client = ("mariadb", "--no-defaults", f"--socket={self.folder}/mariadb.socket")
        self._until(lambda: self._run(*client, "-e", "select 1") is not None)
        self._run(*client, "-e", DATABASE)

    def _start(self, *command: str) -> None:
        program = self.folder / f"{command[0]}.out"
        with open(program, "wb") as output:
            self._processes.append(
                subprocess.Popen(command, env=self.environ, stdout=output, stderr=output)
            )

    def _run(self, *command: str) -> str:
        return self.ask(*command)

    def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; commands that fail meanwhile do not count."""
        deadline = time.monotonic() + 60
        while True:
            ended = [process.args for process in self._processes if process.poll() is not None]
            assert not ended, f"{ended}: see {self.folder}"
            try:
                if condition():
                    return
            except subprocess.CalledProcessError as error:
                last = error.stderr
            else:
                last = "does not hold yet"
            assert time.monotonic() < deadline, f"{last}; see {self.folder}"
            time.sleep(0.2)


def _free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
