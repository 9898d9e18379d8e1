"""Values of the configuration that are written as text, and faults said in one line."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    ValidationError,
    WithJsonSchema,
)

from policies.vocabulary import Band, Plan, Schedule

_TEXT = WithJsonSchema({"type": "string"})


def _plan(value: Any) -> Plan:
    if isinstance(value, Plan):
        return value
    if not isinstance(value, str):
        raise ValueError("must be text such as self_speculation/16")
    return Plan.parse(value.strip())


def _items(value: Any) -> Any:
    """Text becomes a list: how lists come from a command line."""
    return (
        [item.strip() for item in value.split(",") if item.strip()]
        if isinstance(value, str)
        else value
    )


def _words(value: Any) -> Any:
    return shlex.split(value) if isinstance(value, str) else value


def _plans(value: Any) -> tuple[Plan, ...]:
    items = _items(value)
    if isinstance(items, Mapping) or not isinstance(items, Iterable):
        raise ValueError("must be a list of plans such as self_speculation/16")
    return tuple(dict.fromkeys(map(_plan, items)))


def _band(value: Any) -> Band:
    """A band from `4=self_speculation/16`, `ar`, or a mapping with `up_to` and `plan`."""
    match value:
        case Band():
            return value
        case {"plan": plan, **rest} if set(rest) <= {"up_to"}:
            bound = rest.get("up_to")
        case str():
            bound, _, plan = value.rpartition("=")
        case _:
            raise ValueError("must be bands such as 4=self_speculation/16,ar")
    return Band(_bound(bound), _plan(plan))


def _bound(value: Any) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    raise ValueError(f"bound {value!r} of a band must be a whole number of sequences")


def _bands(value: Any) -> tuple[Band, ...]:
    items = _items(value)
    if isinstance(items, Mapping) or not isinstance(items, Iterable):
        raise ValueError("must be bands such as 4=self_speculation/16,ar")
    return Schedule(tuple(map(_band, items))).bands


def _written(bands: tuple[Band, ...]) -> str:
    return ",".join(f"{b.plan}" if b.up_to is None else f"{b.up_to}={b.plan}" for b in bands)


PlanText = Annotated[Plan, PlainValidator(_plan), PlainSerializer(str), _TEXT]
Plans = Annotated[
    tuple[Plan, ...],
    PlainValidator(_plans),
    PlainSerializer(lambda plans: [str(plan) for plan in plans]),
    WithJsonSchema({"type": "array", "items": {"type": "string"}}),
]
Bands = Annotated[tuple[Band, ...], PlainValidator(_bands), PlainSerializer(_written), _TEXT]
Keys = Annotated[tuple[SecretStr, ...], BeforeValidator(_items)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for every fault: key, value, what is wrong, what to do."""
    return "\n".join(_fault(dict(fault), model) for fault in error.errors(include_url=False))


def _fault(fault: dict[str, Any], model: type[BaseModel]) -> str:
    key = str(fault["loc"][0]) if fault["loc"] else "the configuration"
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, model.model_fields, n=1)
        remedy = f"did you mean {near[0]}?" if near else "remove it"
        return f"{key} is not an option; {remedy}"
    field = model.model_fields.get(key)
    meaning = f" ({field.description})" if field is not None and field.description else ""
    return f"{_shown(key, fault.get('input'))} {_problem(fault)}{meaning}"


def _shown(key: str, value: Any) -> str:
    is_secret = any(word in key for word in ("key", "token", "password"))
    if is_secret or isinstance(value, Mapping):
        return key
    text = str(value)
    return f"{key}={text if len(text) <= 60 else text[:57] + '...'}"


def _problem(fault: dict[str, Any]) -> str:
    context = fault.get("ctx", {})
    match fault["type"]:
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}; raise it"
        case "greater_than":
            return f"must be above {context['gt']:g}; raise it"
        case "less_than_equal":
            return f"must be at most {context['le']:g}; lower it"
        case "literal_error" | "enum":
            return f"must be {context['expected']}; choose one of them"
        case "string_pattern_mismatch":
            return f"must begin like {context['pattern'].lstrip('^')}; correct it"
        case "string_too_short":
            return "must not be empty; give it a value or leave it out"
        case "value_error":
            return f"is wrong: {context['error']}"
    message: str = fault["msg"]
    return f"is wrong: {message[:1].lower()}{message[1:]}; correct it"
