"""Thirteen generated tasks with checkable answers, and the split that holds prompts out.

Twelve are determined: the prompt fixes the answer. `story` is open-ended and judged by a grammar.
"""

import ast
import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from replicas.tiny.words import (
    ADJECTIVES,
    ANIMALS,
    CITIES,
    CLASSES,
    COLORS,
    DAYS,
    FIELDS,
    FOODS,
    ITEMS,
    MAX_NUMBER,
    MONTHS,
    NAMES,
    PARCEL_STATES,
    PLACES,
    TABLES,
    VERBS,
)

Pairs = list[tuple[str, str]]

# How a list is laid out: the words in the prompt that ask for it, and the separator.
LAYOUTS = {"": ", ", " with arrows": " -> ", ", one per line": "\n"}


@dataclass(frozen=True)
class Sample:
    """One prompt of a task and its reference answer."""

    task: str
    prompt: str
    answer: str


def _value(rng: Random, field: str) -> str:
    words = FIELDS[field]
    return rng.choice(words) if words else str(rng.randint(1, MAX_NUMBER))


def _fields(rng: Random, low: int, high: int) -> list[str]:
    return rng.sample(list(FIELDS), rng.randint(low, high))


def _record(rng: Random) -> Pairs:
    return [(field, _value(rng, field)) for field in _fields(rng, 2, 5)]


def _rows(rng: Random) -> tuple[list[str], list[list[str]]]:
    fields = _fields(rng, 2, 3)
    return fields, [[_value(rng, field) for field in fields] for _ in range(rng.randint(2, 3))]


def _spell(pairs: Pairs, sign: str) -> str:
    return ", ".join(f"{key}{sign}{value}" for key, value in pairs)


def _spell_rows(rng: Random, fields: list[str], rows: list[list[str]]) -> str:
    sign = rng.choice(["=", ": "])
    return "; ".join(_spell(list(zip(fields, row, strict=True)), sign) for row in rows)


def _literal(value: str, quote: str) -> str:
    return value if value.isdigit() else f"{quote}{value}{quote}"


def _python_type(field: str) -> str:
    return "str" if FIELDS[field] else "int"


def _count(rng: Random) -> tuple[str, str]:
    start, step, total = rng.randint(0, 89), rng.choice([1, 1, 2, 5, 10]), rng.randint(5, 12)
    layout = rng.choice(list(LAYOUTS))
    numbers = [start + step * i for i in range(total)]
    prompt = rng.choice(
        [
            f"Count from {start} in steps of {step}, {total} numbers{layout}",
            f"List {total} numbers from {start} by {step}{layout}",
            f"Write {total} numbers starting at {start}, step {step}{layout}",
        ]
    )
    return prompt, LAYOUTS[layout].join(map(str, numbers))


def _days(rng: Random) -> tuple[str, str]:
    cycle, noun = rng.choice([(DAYS, "days"), (MONTHS, "months")])
    first, total, layout = rng.randrange(len(cycle)), rng.randint(5, 12), rng.choice(list(LAYOUTS))
    prompt = rng.choice(
        [
            f"List {total} {noun} from {cycle[first]}{layout}",
            f"Name {total} {noun} starting with {cycle[first]}{layout}",
            f"Write {total} {noun} starting at {cycle[first]}{layout}",
        ]
    )
    return prompt, LAYOUTS[layout].join(cycle[(first + i) % len(cycle)] for i in range(total))


def _json(rng: Random) -> tuple[str, str]:
    record = _record(rng)
    ask = rng.choice(["JSON: ", "Make JSON from ", "Write JSON with ", "Convert to JSON: "])
    lines = ",\n".join(f'  "{key}": {_literal(value, chr(34))}' for key, value in record)
    return ask + _spell(record, rng.choice(["=", ": "])), "{\n" + lines + "\n}"


def _sql(rng: Random) -> tuple[str, str]:
    record, table = _record(rng), rng.choice(TABLES)
    ask = rng.choice(
        [
            f"SQL insert into {table}: ",
            f"Insert into SQL table {table}: ",
            f"Write SQL to insert into {table}: ",
        ]
    )
    columns = ", ".join(key for key, _ in record)
    values = ", ".join(_literal(value, "'") for _, value in record)
    answer = f"INSERT INTO {table} ({columns})\nVALUES ({values});"
    return ask + _spell(record, rng.choice(["=", ": "])), answer


def _table(rng: Random) -> tuple[str, str]:
    fields, rows = _rows(rng)
    ask = rng.choice(["Markdown table: ", "Make a table from ", "Write a table: "])
    lines = [fields, ["---"] * len(fields), *rows]
    answer = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return ask + _spell_rows(rng, fields, rows), answer


def _csv(rng: Random) -> tuple[str, str]:
    fields, rows = _rows(rng)
    ask = rng.choice(["CSV: ", "Make CSV from ", "Convert to CSV: "])
    return ask + _spell_rows(rng, fields, rows), "\n".join(map(",".join, [fields, *rows]))


def _dataclass(rng: Random) -> tuple[str, str]:
    name, fields = rng.choice(CLASSES), _fields(rng, 2, 5)
    ask = rng.choice(
        [f"Dataclass {name} with ", f"Write a dataclass {name}: ", f"Python dataclass {name}: "]
    )
    body = "\n".join(f"    {field}: {_python_type(field)}" for field in fields)
    answer = f"from dataclasses import dataclass\n\n@dataclass\nclass {name}:\n{body}"
    return ask + ", ".join(fields), answer


def _getters(rng: Random) -> tuple[str, str]:
    name, fields = rng.choice(CLASSES), _fields(rng, 2, 4)
    ask = rng.choice([f"Getters for {name}: ", f"Write class {name} with getters for "])
    body = "\n\n".join(
        f"    def get_{field}(self):\n        return self.{field}" for field in fields
    )
    return ask + ", ".join(fields), f"class {name}:\n{body}"


def _tests(rng: Random) -> tuple[str, str]:
    function = f"{rng.choice(VERBS)}_{rng.choice(list(FIELDS))}"
    cases = [
        (rng.randint(1, MAX_NUMBER), rng.randint(1, MAX_NUMBER)) for _ in range(rng.randint(2, 4))
    ]
    ask = rng.choice([f"Tests for {function}: ", f"Write tests of {function}: "])
    answer = "\n\n".join(
        f"def test_{i}():\n    assert {function}({given}) == {result}"
        for i, (given, result) in enumerate(cases, 1)
    )
    return ask + ", ".join(f"{given} gives {result}" for given, result in cases), answer


_MAIL_BODIES = {
    "late": "I am sorry to tell you that your {what} is late. It will now arrive in {city} on "
    "{day}. Thank you for your patience.",
    "sent": "Good news: your {what} has been sent. It will arrive in {city} on {day}. You can "
    "follow the parcel at any time.",
    "lost": "We are sorry, your {what} was lost on the way to {city}. We will send a new one on "
    "{day} and you pay nothing.",
}


def _mail(rng: Random) -> tuple[str, str]:
    reader, writer = rng.sample(NAMES, 2)
    what = f"{rng.choice(COLORS)} {rng.choice(ITEMS)}"
    city, day, state = rng.choice(CITIES), rng.choice(DAYS), rng.choice(PARCEL_STATES)
    prompt = rng.choice(
        [
            f"Mail from {writer} to {reader}: {what} {state}, {city}, {day}",
            f"Write to {reader} from {writer} about a {what}, {state}, {city}, {day}",
            f"Write a mail from {writer} to {reader}: {what} {state}, {city}, {day}",
        ]
    )
    body = _MAIL_BODIES[state].format(what=what, city=city, day=day)
    return prompt, f"Dear {reader},\n\n{body}\n\nKind regards,\n{writer}"


def _add(rng: Random) -> tuple[str, str]:
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    tens, units = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    prompt = rng.choice([f"Add {a} and {b}", f"What is {a} + {b}?", f"What is {a} plus {b}?"])
    answer = (
        f"{a // 10 * 10} + {b // 10 * 10} = {tens}\n{a % 10} + {b % 10} = {units}\n"
        f"{tens} + {units} = {a + b}\nThe sum of {a} and {b} is {a + b}."
    )
    return prompt, answer


_REVERSIBLE = (NAMES, CITIES, ITEMS, COLORS)


def _reverse(rng: Random) -> tuple[str, str]:
    # No word twice: "what follows this word" then has one answer, as in a list a person types.
    pool = [word for group in _REVERSIBLE for word in rng.sample(group, 4)]
    words = rng.sample(pool, rng.randint(3, 8))
    ask = rng.choice(["Reverse: ", "Say backwards: ", "Reverse the list: "])
    return ask + ", ".join(words), ", ".join(words[::-1])


def _story(rng: Random) -> tuple[str, str]:
    pick, hero, name = rng.choice, rng.choice(ANIMALS), rng.choice(NAMES)
    other = pick([animal for animal in ANIMALS if animal != hero])
    middle = [
        f"{name} went to the {pick(PLACES)} to find {pick(FOODS)}.",
        f"{name} met a {pick(ADJECTIVES)} {other} at the {pick(PLACES)}.",
        f"They shared {pick(FOODS)} and {pick(FOODS)}.",
        f"It was a {pick(ADJECTIVES)} {pick(DAYS)} in {pick(MONTHS)}.",
        f"A {pick(COLORS)} {pick(ITEMS)} was lying near the {pick(PLACES)}.",
        f"The {other} gave {name} a {pick(COLORS)} {pick(ITEMS)}.",
    ]
    opening = (
        f"Once there was a {pick(ADJECTIVES)} {hero} named {name} "
        f"who lived near the {pick(PLACES)}."
    )
    ending = f"Then {name} went home and was {pick(ADJECTIVES)}."
    prompt = pick(
        [
            f"Story about {name} the {hero}",
            f"Tell a story: {hero}, {name}",
            f"Tell a story about {name} the {hero}",
        ]
    )
    return prompt, " ".join([opening, *rng.sample(middle, rng.randint(3, 4)), ending])


GENERATORS: dict[str, Callable[[Random], tuple[str, str]]] = {
    "count": _count,
    "days": _days,
    "json": _json,
    "sql": _sql,
    "table": _table,
    "csv": _csv,
    "dataclass": _dataclass,
    "getters": _getters,
    "tests": _tests,
    "mail": _mail,
    "add": _add,
    "reverse": _reverse,
    "story": _story,
}
TASKS: list[str] = list(GENERATORS)
OPEN_ENDED = frozenset({"story"})
LISTING = frozenset({"count", "days"})


def is_held_out(sample: Sample) -> bool:
    """One sixteenth of the answers (of the prompts, for open-ended tasks) is never trained on.

    Splitting by answer keeps a rephrased training prompt out of the test set. But the answer of a
    listing task is the beginning of longer ones: left out in every phrasing, training would teach
    that the list never ends there. So for those only one phrasing in four is held out.
    """
    prompt = sample.prompt.rstrip(".")
    key = prompt if sample.task in OPEN_ENDED else sample.answer
    held_out = zlib.crc32(f"{sample.task} {key}".encode()) % 16 == 0
    if sample.task in LISTING:
        held_out = held_out and zlib.crc32(prompt.encode()) % 4 == 0
    return held_out


def draw(rng: Random, task: str, held_out: bool = False) -> Sample:
    """Draw one sample of `task` from the training side or the held-out side of the split."""
    while True:
        prompt, answer = GENERATORS[task](rng)
        # A person may or may not end the prompt with a full stop.
        if prompt[-1] != "?" and rng.random() < 0.5:
            prompt += "."
        sample = Sample(task, prompt, answer)
        if is_held_out(sample) == held_out:
            return sample


def held_out_set(task: str, count: int, seed: int = 4242) -> list[Sample]:
    """Up to `count` distinct held-out samples of `task`; the same ones for the same seed."""
    rng = Random(f"{task} {seed}")
    found: dict[str, Sample] = {}
    for _ in range(20 * count):
        sample = draw(rng, task, held_out=True)
        found.setdefault(sample.prompt, sample)
        if len(found) == count:
            break
    return list(found.values())


def _one_of(words: Sequence[str]) -> str:
    return "(?:" + "|".join(words) + ")"


def _story_pattern() -> re.Pattern[str]:
    adjective, animal, place = _one_of(ADJECTIVES), _one_of(ANIMALS), _one_of(PLACES)
    food, thing = _one_of(FOODS), f"{_one_of(COLORS)} {_one_of(ITEMS)}"
    name = "(?P=name)"
    middle = _one_of(
        [
            f"{name} went to the {place} to find {food}\\.",
            f"{name} met a {adjective} {animal} at the {place}\\.",
            f"They shared {food} and {food}\\.",
            f"It was a {adjective} {_one_of(DAYS)} in {_one_of(MONTHS)}\\.",
            f"A {thing} was lying near the {place}\\.",
            f"The {animal} gave {name} a {thing}\\.",
        ]
    )
    return re.compile(
        f"Once there was a {adjective} (?P<animal>{animal}) named (?P<name>{_one_of(NAMES)}) "
        f"who lived near the {place}\\. (?:{middle} ){{3,4}}"
        f"Then {name} went home and was {adjective}\\."
    )


_STORY = _story_pattern()
_SUM_LINES = re.compile(r"(\d+ \+ \d+ = \d+\n){3}The sum of \d+ and \d+ is \d+\.")
_INSERT = re.compile(r"INSERT INTO \w+ \(([^()]+)\)\nVALUES \(((?:(?:'\w+'|\d+)(?:, )?)+)\);")
_MAIL = re.compile(r"Dear \w+,\n\n[^\n]+\.\n\nKind regards,\n\w+")


def _same_width(answer: str, separator: str, least_rows: int) -> bool:
    widths = [line.count(separator) for line in answer.split("\n")]
    return len(widths) >= least_rows and len(set(widths)) == 1 and widths[0] > 0


def _listed(answer: str) -> list[str]:
    return re.split(r", | -> |\n", answer)


def _parses(parse: Callable[[str], object], answer: str) -> bool:
    try:
        return bool(parse(answer))
    except (ValueError, SyntaxError):
        return False


def _well_formed_sql(answer: str) -> bool:
    match = _INSERT.fullmatch(answer)
    return match is not None and match[1].count(",") == match[2].count(",")


def _well_formed_story(prompt: str, answer: str) -> bool:
    match = _STORY.fullmatch(answer)
    return match is not None and match["name"] in prompt and match["animal"] in prompt


def well_formed(task: str, prompt: str, answer: str) -> bool:
    """Whether the answer has the form asked for, whatever its values."""
    match task:
        case "json":
            return _parses(json.loads, answer)
        case "dataclass" | "getters" | "tests":
            return _parses(ast.parse, answer)
        case "sql":
            return _well_formed_sql(answer)
        case "table":
            return _same_width(answer, "|", 4)
        case "csv":
            return _same_width(answer, ",", 3) and " " not in answer
        case "count":
            return all(number.isdigit() for number in _listed(answer))
        case "days":
            return set(_listed(answer)) <= {*DAYS, *MONTHS}
        case "reverse":
            known = {word for group in _REVERSIBLE for word in group}
            return set(answer.split(", ")) <= known
        case "add":
            return bool(_SUM_LINES.fullmatch(answer))
        case "mail":
            return bool(_MAIL.fullmatch(answer))
        case "story":
            return _well_formed_story(prompt, answer)
    raise ValueError(f"unknown task: {task}")


def correct(sample: Sample, answer: str) -> bool:
    """Whether `answer` is right: the reference, or for a story anything the grammar takes."""
    if sample.task in OPEN_ENDED:
        return well_formed(sample.task, sample.prompt, answer)
    return answer == sample.answer
