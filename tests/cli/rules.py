"""Studies that end by rule: what is typed, and a stand-in for training that writes records."""

from pathlib import Path

import numpy as np

from moebench.plans import Job, Plan, read_plan
from moebench.records import Record
from tests.calls import Call

STUDY = ["sweep", "study=scope", "study.size=quick"]
RULE = ["--until-decided", "--most-seeds", "12"]


def write(runs: Path, job: Job, effect: float, trigram: float) -> None:
    from moebench.config.compose import from_dict
    from moebench.config.identity import science

    rng = np.random.default_rng([job.seed, int(job.arm_hash, 16)])
    nats = 2 + 0.1 * job.seed + 0.01 * (rng.normal() + effect * (job.arm == "global"))
    record = Record(runs / job.run)
    data = {"content_hash": "0", "trigram_bits": trigram}
    record.begin(
        "seed: 0\n",
        {
            **{key: getattr(job, key) for key in ("run", "arm", "arm_hash", "seed")},
            "science": science(from_dict(job.config), "0"),
            "data": data,
        },
    )
    record.append({"step": 0, "valid/nats": 5.0})
    quality = {"valid/nats": nats, "valid/bits_per_byte": nats / np.log(2)}
    steps = {"steps": job.steps, "tokens": job.steps * 4096, "seconds": 1.0, "status": "done"}
    record.seal({**quality, **steps, "arm": job.arm, "seed": job.seed})
    record.set_status("done", step=job.steps, steps=job.steps)


def plan_file() -> Path:
    [path] = Path("runs").glob("studies/*/plan.json")
    return path


def only_plan() -> Plan:
    return read_plan(plan_file())


def registered(call: Call, *words: str) -> Path:
    """Register a study; the file of its plan."""
    assert call(*words, "--register").code == 0
    return plan_file()
