"""muki_ray: merge fine-tuned text classifiers with different label sets into one, without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muki_ray.config import IntegrateConfig
    from muki_ray.errors import UserError
    from muki_ray.workflow import RunResult, evaluate, integrate

__version__ = "0.1.0"
__all__ = ["IntegrateConfig", "RunResult", "UserError", "evaluate", "integrate"]


def __getattr__(name: str) -> Any:
    """Import on first use: `import muki_ray` alone loads neither Torch nor Ray."""
    if name == "IntegrateConfig":
        from muki_ray.config import IntegrateConfig

        return IntegrateConfig
    if name == "UserError":
        from muki_ray.errors import UserError

        return UserError
    if name in ("RunResult", "evaluate", "integrate"):
        from muki_ray import workflow

        return getattr(workflow, name)
    raise AttributeError(f"module 'muki_ray' has no attribute {name!r}")
