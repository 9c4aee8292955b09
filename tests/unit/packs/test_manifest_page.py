"""docs/reference/manifest.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from placet.sandbox import manifest

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "manifest.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, list[str]]:
    """A section's table: what its first column names -> the other columns."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            for name in re.findall(r"`([a-z_]+)`", cells[0]):
                table[name] = cells[1:]
    return table


def test_limits_are_those_of_the_code() -> None:
    defaults = manifest.ComponentLimits()
    expected = {name: [f"{low:,} to {high:,}", f"{getattr(defaults, name):,}"] for name, (low, high) in manifest._LIMIT_RANGES.items()}
    assert {name: [cell.strip(" |") for cell in cells] for name, cells in rows("Limits").items()} == expected


def test_every_rule_type_and_format_is_named() -> None:
    assert set(rows("Consensus rules")) == set(manifest._RULES)
    schemas = rows("Schemas")
    assert set(schemas) == set(manifest._TYPES)
    assert set(re.findall(r"`([a-z]+)`", schemas["string"][0].split("`format`:")[1])) == set(manifest._FORMATS)


def test_every_field_is_named() -> None:
    table = PAGE.split("\n## ")[0]
    fields = set(re.findall(r"^\| `([a-z_]+)`", table, re.MULTILINE))
    assert fields == {"name", "world", "clock", "arguments", "secrets", "output", "allowed_hosts", "limits"}
