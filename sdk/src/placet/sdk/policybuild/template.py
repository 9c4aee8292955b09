"""`placet policy init`: a pack that works from the start, to be changed step by step.

Templates lie under templates/: what all packs share, and a component a language. `@name@` and `@package@` are replaced; a leading `dot-`
in a file's name becomes a dot, and `.tmpl`, which keeps tools from reading a template as code, goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Final

from placet.core.errors import InvalidInput

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SOURCES: Final = {"javascript": "component/observe.mjs", "python": "component/observe.py", "rust": "component"}


def write_template(folder: Path, name: str, language: str) -> list[Path]:
    """Make the folder of a new pack; returns its files.

    Raises:
        InvalidInput: the name is none, or the folder exists.
    """
    if not _NAME.fullmatch(name) or len(name) > 48:
        raise InvalidInput("a pack's name is lower-case words joined by -, at most 48 characters", field="name")
    if folder.exists():
        raise InvalidInput(f"{folder} exists: choose another name, or another --dir", field="name")
    root = resources.files("placet.sdk.policybuild") / "templates"
    replaced = {"@name@": name, "@package@": name.replace("-", "_"), "@language@": language, "@source@": _SOURCES[language]}
    written = []
    for part in ("common", language):
        for relative, source in _files(root / part, PurePosixPath()):
            text = source.read_text(encoding="utf-8")
            target = str(relative)
            for mark, value in replaced.items():
                text, target = text.replace(mark, value), target.replace(mark, value)
            path = folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return sorted(written)


def _files(folder: Traversable, at: PurePosixPath) -> Iterator[tuple[PurePosixPath, Traversable]]:
    for item in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if item.name in ("__pycache__", "target"):
            continue
        if item.is_dir():
            yield from _files(item, at / item.name)
        else:
            yield at / item.name.replace("dot-", ".", 1).removesuffix(".tmpl"), item
