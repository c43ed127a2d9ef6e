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
not exist is an error. Parts of a model are told apart by their `kind`.

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
        sections = _sections(field, definitions)
        if not sections and name != "kind":
            meaning = " ".join(field.get("description", "").split()).replace("|", "\\|")
            needed = name in schema.get("required", ())
            default = "required" if needed else f"`{json.dumps(field.get('default', {}))}`"
            yield Setting(f"{prefix}{name}", default, meaning)
        for section in sections:
            kind = section.get("properties", {}).get("kind", {}).get("const")
            yield from _settings(section, definitions, f"{prefix}{name}{f'[{kind}]' if kind else ''}.")


def _sections(field: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """The nested sections a field may hold: one, or one for each kind."""
    choices = [field, *field.get("oneOf", []), *field.get("anyOf", []), *field.get("allOf", [])]
    return [definitions[choice["$ref"].rsplit("/", 1)[1]] for choice in choices if "$ref" in choice]


if __name__ == "__main__":
    sys.stdout.write(page())
