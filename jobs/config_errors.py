"""What is wrong with a setting, in words that name its key as a person writes it, and the nearest right one."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails


def message(error: ErrorDetails, tree: Any, model: type[BaseModel]) -> str:
    """One line for one of pydantic's errors about `tree`, which was to be a `model`."""
    key = _key(error["loc"], tree)
    schema = model.model_json_schema()
    context = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"no setting {key}{_right_settings(error['loc'], key, schema)}"
        case "union_tag_invalid":
            kinds = [kind.strip(" '") for kind in context["expected_tags"].split(",")]
            return f"{key}.kind: no kind {context['tag']!r}{_nearest(context['tag'], kinds)}; kinds: {', '.join(kinds)}"
        case "missing":
            return f"{key} has no default; set it"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{key} is a section of settings, got {error['input']!r}"
        case "tuple_type" | "list_type" if isinstance(error["input"], str | int | float):
            return f"{key}: wants a list; write [{error['input']}]"
        case _:
            return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def _key(place: tuple[int | str, ...], tree: Any) -> str:
    """The dotted key; pydantic's place also holds the kinds of components, which are no keys."""
    steps = []
    for number, step in enumerate(place):
        inside = isinstance(tree, Mapping) and step in tree
        if inside or (isinstance(tree, list | tuple) and isinstance(step, int)):
            tree = tree[step]
        elif number < len(place) - 1:
            continue
        steps.append(str(step))
    return ".".join(steps)


def _right_settings(place: tuple[int | str, ...], key: str, schema: dict[str, Any]) -> str:
    """The nearest setting of the same section, else of any; with none near, what the section holds."""
    section, _, name = key.rpartition(".")
    here = _fields(place[:-1], schema)
    prefix = f"{section}." if section else ""
    near = difflib.get_close_matches(name, here, 1) or _elsewhere(name, schema)
    if key in near:
        kind = place[-2]
        return (
            f" of {kind}; another kind has it: set {section}.kind, or leave it out: --set '{section}={{kind: {kind}}}'"
        )
    if near:
        return f"; nearest: {prefix if near[0] in here else ''}{near[0]}"
    return f"; {section or 'the file'} has {', '.join(here)}" if here else ""


def _fields(place: Iterable[int | str], schema: dict[str, Any]) -> list[str]:
    """The settings of the section at pydantic's `place`."""
    node = schema
    for step in place:
        found = _options(node, schema).get(str(step)) or node.get("properties", {}).get(step)
        if found is None:
            return []
        node = _resolved(found, schema)
    return sorted(node.get("properties", {}))


def _options(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The kinds of a component, by name."""
    kinds = node.get("discriminator", {}).get("mapping", {})
    return {kind: _resolved({"$ref": place}, schema) for kind, place in kinds.items()}


def _resolved(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in node:
        node = next((option for option in node["anyOf"] if "$ref" in option), node)
    return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def _elsewhere(name: str, schema: dict[str, Any]) -> list[str]:
    """The full keys of the settings called `name` in other sections."""
    return [key for key in _keys(schema, schema, "") if key.rpartition(".")[2] == name]


def _keys(node: dict[str, Any], schema: dict[str, Any], prefix: str) -> list[str]:
    found = []
    for name, field in node.get("properties", {}).items():
        inner = _resolved(field, schema)
        found.append(prefix + name)
        for section in [inner, *_options(inner, schema).values()]:
            found += _keys(section, schema, f"{prefix}{name}.")
    return found


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(str(word), known, 1)
    return f"; nearest: {close[0]}" if close else ""
