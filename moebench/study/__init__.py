"""Arms x seeds become a plan, and the plan's jobs become records, each in a process of its own."""

from moebench.study.plan import Job, LocalLauncher, Plan, make_plan, read_plan, state_of

__all__ = ["Job", "LocalLauncher", "Plan", "make_plan", "read_plan", "state_of"]
