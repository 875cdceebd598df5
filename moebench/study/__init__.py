"""Arms x seeds become a plan, and the plan's jobs become records, each in a process of its own."""

from moebench.plans import Job, Plan, find_plan, read_plan
from moebench.study.axes import Axes
from moebench.study.launcher import Launcher
from moebench.study.plan import make_plan

__all__ = ["Axes", "Job", "Launcher", "Plan", "find_plan", "make_plan", "read_plan"]
