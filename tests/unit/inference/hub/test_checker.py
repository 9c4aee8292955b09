"""What may be uploaded: sound models are described, hostile ones refused by name, and nothing reaches beyond the child process."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from placet.core.errors import InvalidInput, NotFound, TooLarge
from placet.core.models import File, Kind, Manifest, Spec
from placet.core.objects import ObjectStore
from placet.core.types import Hash32
from placet.inference.hub.inspector import Inspector
from tests.support import onnx_files


class Desk:
    """An object store and an inspector."""

    def __init__(self, folder: Path) -> None:
        self.objects = ObjectStore((folder / "objects").as_uri())
        self.scratch = folder / "scratch"
        self.inspector = Inspector(self.objects, self.scratch, memory_bytes=3 << 30, cpu_s=30)

    async def files(self, **contents: bytes) -> tuple[File, ...]:
        out = []
        for name, content in contents.items():
            await self.objects.put(content)
            out.append(File(name.replace("__", "."), Hash32(hashlib.sha256(content).digest()), len(content)))
        return tuple(out)

    async def inspect(self, kind: Kind = Kind.TENSORS, **contents: bytes) -> Manifest:
        return await self.inspector.inspect(Manifest("alice", "m", 1, kind, await self.files(**contents)))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_a_sound_model_is_described(desk: Desk) -> None:
    found = await desk.inspect(model__onnx=onnx_files.linear())
    assert found.inputs == (Spec("x", "FP32", (-1, 4)),)
    assert found.outputs == (Spec("y", "FP32", (-1, 3)),)
    assert (found.ops, found.opsets, found.parameters) == (("Gemm", "Relu"), {"ai.onnx": 17}, 15)
    assert not found.dynamic_quantisation
    assert not list(desk.scratch.iterdir()), "nothing is left behind"


async def test_dynamic_quantisation_is_noticed(desk: Desk) -> None:
    assert (await desk.inspect(model__onnx=onnx_files.dynamically_quantised())).dynamic_quantisation


async def test_external_data_of_the_model_itself_is_fine(desk: Desk) -> None:
    found = await desk.inspect(model__onnx=onnx_files.external("weights.bin"), weights__bin=b"\0" * 48)
    assert found.parameters == 12


HOSTILE = {
    "no protobuf": (b"\xff" * 100, "not an ONNX file"),
    "empty": (b"", "without nodes"),
    "a custom operator": (onnx_files.custom_operator(), "com.example.Evil is not one of the runtime's"),
    "a local function": (onnx_files.local_function(), "local functions"),
    "an absolute path": (onnx_files.external("/etc/passwd"), "leaves the model's folder"),
    "a parent folder": (onnx_files.external("../../objects/x"), "leaves the model's folder"),
    "a parent folder in the middle": (onnx_files.external("a/../../x"), "leaves the model's folder"),
    "a backslash": (onnx_files.external("..\\x"), "leaves the model's folder"),
    "a file that is not there": (onnx_files.external("other.bin"), "is no file of this model"),
    "beyond the file": (onnx_files.external("model.onnx", offset=1 << 30), "beyond the end"),
    "a negative offset": (onnx_files.external("model.onnx", offset=-4), "beyond the end"),
    "a size that overflows": (onnx_files.declared_bomb(), "more than 2147483648 elements"),
    "nested subgraphs": (onnx_files.nested(9), "nested deeper than 8"),
    "a sequence": (onnx_files.sequence_output(), "no tensor"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_files_are_refused_by_name(desk: Desk, name: str) -> None:
    content, words = HOSTILE[name]
    with pytest.raises(InvalidInput) as caught:
        await desk.inspect(model__onnx=content)
    assert words in caught.value.message
    assert caught.value.field
    assert not list(desk.scratch.iterdir())


async def test_a_model_that_needs_more_than_its_memory_ends_its_child_and_nothing_else(desk: Desk) -> None:
    with pytest.raises(InvalidInput):
        await desk.inspect(model__onnx=onnx_files.shape_bomb())
    assert (await desk.inspect(model__onnx=onnx_files.linear())).parameters == 15


async def test_files_are_what_they_are_declared_as(desk: Desk) -> None:
    (file,) = await desk.files(model__onnx=onnx_files.linear())
    with pytest.raises(NotFound):
        await desk.inspector.inspect(Manifest("a", "m", 1, Kind.TENSORS, (File("model.onnx", Hash32(b"\1" * 32), 10),)))
    for size, error in ((file.size - 1, TooLarge), (file.size + 1, InvalidInput)):
        with pytest.raises(error):
            await desk.inspector.inspect(Manifest("a", "m", 1, Kind.TENSORS, (File("model.onnx", file.sha256, size),)))
    with pytest.raises(TooLarge, match="together"):
        await desk.inspector.inspect(Manifest("a", "m", 1, Kind.TENSORS, (File("model.onnx", file.sha256, 5 << 30),)))
    with pytest.raises(InvalidInput, match=r"model\.onnx is missing"):
        await desk.inspector.inspect(Manifest("a", "m", 1, Kind.TENSORS, (File("other.onnx", file.sha256, file.size),)))


async def test_a_language_model_needs_its_configuration(desk: Desk) -> None:
    with pytest.raises(InvalidInput, match=r"genai_config\.json is missing"):
        await desk.inspect(Kind.TEXT, model__onnx=onnx_files.linear())
