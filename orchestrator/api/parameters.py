"""Types for request parameters: refused ones that say why, and unions that say what they accept."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, ValidationError, core_schema

UNSUPPORTED = "unsupported_parameter"
"""The error code of a parameter that is known but refused at the value given."""


class StrictModel(BaseModel):
    """A request body: exact JSON types, no unknown fields."""

    # Strict, because "5" for a number is a client's bug that should not surface later; protected
    # namespaces off, because `model` is OpenAI's name.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


def _same(value: Any, neutral: Any) -> bool:
    # True == 1 in Python, but not in JSON.
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


class Neutral:
    """Marks a parameter that is accepted at values that change nothing, and refused otherwise.

    `null` is always neutral. `because` completes the sentence "`name` is not supported: ...".
    """

    def __init__(self, *values: Any, because: str) -> None:
        self.values = values
        self.because = because

    def check(self, value: Any) -> Any:
        if value is None or any(_same(value, neutral) for neutral in self.values):
            return value
        raise PydanticCustomError(UNSUPPORTED, "{because}", {"because": self._refusal()})

    def _refusal(self) -> str:
        allowed = ", ".join(repr(value) for value in self.values) or "null"
        return f"not supported: {self.because}; leave it out or send {allowed}"

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": [None, *self.values], "description": f"Only neutral values: {self.because}"}


class Described:
    """Replaces a union's branch-by-branch errors by one sentence: "must be ..."."""

    def __init__(self, must_be: str) -> None:
        self.must_be = must_be

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self.check, handler(source))

    def check(self, value: Any, validate: core_schema.ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise PydanticCustomError(
                "described", "must be {what}", {"what": self.must_be}
            ) from None
