"""Who runs where, and what it will cost: numbers in, numbers out. Knows no Ray, no models, no files."""

from muki_ray.planning.nodes import LIGHT_TASK_CPUS, Resources, equal_share, light_tasks, on_gpu, total
from muki_ray.planning.waves import PoolPlan, plan_waves, waiting

__all__ = [
    "LIGHT_TASK_CPUS",
    "PoolPlan",
    "Resources",
    "equal_share",
    "light_tasks",
    "on_gpu",
    "plan_waves",
    "total",
    "waiting",
]
