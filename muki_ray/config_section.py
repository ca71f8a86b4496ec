"""What all parts of the configuration share: the base class, and kinds of values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

# type of the error that some other value stands for a section; its context has `required`, names of settings
NO_MAPPING = "no_mapping"

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def _schedulable(gpus: float) -> float:
    """Ray shares one GPU by fractions, but hands out several only whole."""
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(f"num_gpus must be whole above 1, got {gpus}; use {int(gpus)} or {int(gpus) + 1}")
    return gpus


def filled(remedy: str) -> Callable[[str], str]:
    """A check that a string is not blank; a blank path would mean the current directory."""

    def check(value: str) -> str:
        if not value.strip():
            raise ValueError(f"is empty, got {value!r}; {remedy}")
        return value

    return check


Gpus = Annotated[float, Field(ge=0), AfterValidator(_schedulable)]
ModelName = Annotated[str, AfterValidator(filled("give a hub id, a folder or a URI"))]


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _mapping(cls, content: Any) -> Any:
        """What stands where a mapping must is most likely the value of the last setting that is required."""
        required = [name for name, field in cls.model_fields.items() if field.is_required()]
        if isinstance(content, dict | BaseModel) or not required:
            return content
        raise PydanticCustomError(NO_MAPPING, "must be a mapping of settings", {"required": required})

    @model_validator(mode="before")
    @classmethod
    def _no_truth_value(cls, content: Any) -> Any:
        """YAML reads `yes` and `off` as truth values, and pydantic would count them as 1 and 0."""
        if isinstance(content, dict):
            for name, value in content.items():
                field = cls.model_fields.get(name)
                if isinstance(value, bool) and field is not None and field.annotation is not bool:
                    raise ValueError(
                        f"{name} must not be true or false, got {value!r}; give a number, or quote a word"
                    )
        return content
