"""The duration of a report over 1,000 records of 1,000 rows, without and with its cache.

    python benchmarks/report.py --records 1000 --rows 1000

Records and cache are in a temporary folder. Each measurement is a separate process, including its
imports. It reads every run, its seal and all of its curves. The script prints wall time and process
time; process time depends less on other work on the machine. The report and its page are timed with
the cache of records; the page also needs its JavaScript, which is packed once.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from moebench.records import Record

READ = """
import sys, moebench.report as report
frame = report.load(sys.argv[1])
curves = frame.curves()
print(f"{len(frame.runs)} runs, {len(curves)} rows, {curves.shape[1]} columns")
"""
BRIEF = """
import sys, pathlib, moebench.report as report
lines = report.make_report([pathlib.Path(sys.argv[1])]).brief()
print(f"{len(lines)} lines")
"""
REPORT = """
import sys, pathlib, moebench.report as report
text = report.make_report([pathlib.Path(sys.argv[1])]).render("table", 100)
print(f"{len(text.splitlines())} lines")
"""
PAGE = """
import sys, pathlib, moebench.report as report
page = report.make_report([pathlib.Path(sys.argv[1])]).page("moebench report")
print(f"{len(page.encode()) / 1e6:.1f} MB")
"""
METRICS = (
    *("train/loss", "train/balance_loss", "train/balance_loss_micro", "train/balance_loss_global"),
    *("train/z_loss", "train/grad_norm", "train/lr", "load/max_vio_micro", "load/max_vio_batch"),
    *("load/cv", "load/entropy", "load/dead_experts", "router/topk_mass"),
    *("speed/tokens_per_second", "speed/step_seconds", "memory/peak_bytes"),
)
EVALUATED = (
    *("valid/nats", "valid/ppl", "valid/bits_per_byte", "load/max_vio_global"),
    "specialization/domain",
)
FINAL = (*EVALUATED, "load/max_vio_micro", "ep/slowdown")


def make(root: Path, records: int, rows: int) -> None:
    """Write records as runs do, with an evaluation every tenth row."""
    rng = np.random.default_rng(0)
    os.fsync = lambda _: None  # durability is not needed here
    for number in range(records):
        record = Record(root / f"arm-{number // 10}-s{number % 10}")
        about = {"arm": f"arm-{number // 10}", "arm_hash": f"{number // 10}", "seed": number % 10}
        science = {"data": "0", "seq_len": 128, "global_bsz": 32, "train.steps": 10 * rows}
        record.begin("seed: 0\n", {**about, "science": science, "device": "cpu"})
        lines = []
        for row, values in enumerate(rng.random((rows, len(METRICS))).tolist()):
            line = {"step": 10 * row, **dict(zip(METRICS, values, strict=True))}
            if row % 10 == 0:
                line |= dict.fromkeys(EVALUATED, values[0])
            lines.append(line)
        text = "\n".join(map(str, lines)).replace("'", '"') + "\n"
        (record.path / "metrics.jsonl").write_text(text)
        last = dict(zip(FINAL, rng.normal(2, 0.01, len(FINAL)).tolist(), strict=True))
        record.seal({**about, "steps": 10 * rows, "tokens": 1, **last})


def timed(root: Path, code: str = READ) -> str:
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{seconds:.2f} s, {used:.2f} s of process time ({done.stdout.strip()})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=1000, help="rows in each record")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MOEBENCH_CACHE"] = f"{folder}/cache"
        root = Path(folder) / "runs"
        make(root, args.records, args.rows)
        print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        for what in ("without cache", "with cache", "with cache", "with cache"):
            print(f"{what}: {timed(root)}")
        for what, code in (
            ("the report", BRIEF),
            ("the report in full", REPORT),
            ("the page", PAGE),
            ("the page again", PAGE),
        ):
            print(f"{what}, with cache: {timed(root, code)}")
        one = Record(root / "arm-0-s0")
        one.seal({**one.summary(), "valid/nats": 0.5})
        print(f"with cache, one record changed: {timed(root)}")
        cache = sum(path.stat().st_size for path in Path(folder, "cache").rglob("*.parquet"))
        print(f"size of the cache: {cache / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
