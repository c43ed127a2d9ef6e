"""Every setting of a run with its default and meaning, as docs/configuration.md shows them.

Write that page anew with `python -m jobs.settings > docs/configuration.md`.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from jobs.config import RunConfig

HEAD = """# Settings

A configuration is one YAML file (or a recipe's name); `--set a.b=value` changes single settings of it. A key that does
not exist is an error. Parts of a model are told apart by their `kind`: `model.encoder[pretrained].folder` is the
`folder` of an encoder of that kind. Kinds have settings of their own, so another kind is given as a whole section:
`--set 'model.latent={kind: categorical, variables: 8}'`. A name that ends in `[]` is of the entries of a list.

| setting | default | meaning |
| --- | --- | --- |
"""


class Setting(NamedTuple):
    """One setting: its dotted key, `kind` in brackets where it belongs to one, its default as JSON, what it means."""

    key: str
    default: str
    meaning: str


def settings() -> list[Setting]:
    """All settings of a RunConfig, section by section."""
    schema = RunConfig.model_json_schema()
    return list(_settings(schema, schema["$defs"], ""))


def page() -> str:
    """docs/configuration.md."""
    rows = [f"| `{one.key}` | {one.default} | {one.meaning} |\n" for one in settings()]
    return HEAD + "".join(rows)


def _settings(schema: dict[str, Any], definitions: dict[str, Any], prefix: str) -> Iterator[Setting]:
    for name, field in schema.get("properties", {}).items():
        key, sections = f"{prefix}{name}", _sections(field, definitions)
        if name == "kind" or (prefix.endswith("[].") and name == "objective"):
            continue  # the objective of a list's entry is that of the section above
        if not sections or field.get("default", {}) is None:
            needed = name in schema.get("required", ())
            default = "required" if needed else f"`{json.dumps(field.get('default', {}))}`"
            yield Setting(key, default, _meaning(field))
        if kinds := [kind for section in sections if (kind := _kind(section))]:
            default = f"`{json.dumps(field['default']['kind'])}`" if field.get("default") else "required"
            yield Setting(f"{key}.kind", default, f"one of {', '.join(kinds)}")
        for section in sections:
            kind = _kind(section)
            yield from _settings(section, definitions, f"{key}{f'[{kind}]' if kind else ''}.")
        for section in _sections(field.get("items", {}), definitions):
            yield from _settings(section, definitions, f"{key}[].")


def _kind(section: dict[str, Any]) -> str | None:
    kind: str | None = section.get("properties", {}).get("kind", {}).get("const")
    return kind


def _meaning(field: dict[str, Any]) -> str:
    return " ".join(field.get("description", "").split()).replace("|", "\\|")


def _sections(field: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """The nested sections a field may hold: one, or one for each kind."""
    if "$ref" in field:
        return [definitions[field["$ref"].rsplit("/", 1)[1]]]
    choices = [choice for way in ("oneOf", "anyOf", "allOf") for choice in field.get(way, [])]
    return [section for choice in choices for section in _sections(choice, definitions)]


if __name__ == "__main__":
    sys.stdout.write(page())
