from __future__ import annotations

import asyncio
import hashlib
import struct
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from placet.core.errors import DeadlineExceeded, InvalidInput, RateLimited, Unavailable
from placet.inference.engines.base import Tensor, TensorResult, TensorSpec
from placet.inference.engines.onnx import OnnxEngine, load_onnx
from placet.inference.engines.tensors import Array
from tests.support.waiting import until, within

Models = Callable[[str], Path]


@asynccontextmanager
async def loaded(path: Path, **options: Any) -> AsyncIterator[OnnxEngine]:
    engine = load_onnx(path, **options)
    try:
        yield engine
    finally:
        await engine.close()


def row(seed: int, width: int = 256, rows: int = 1, scale: float = 1.0) -> Tensor:
    return Tensor("x", "FP32", (rows, width), (np.random.default_rng(seed).standard_normal((rows, width)) * scale).astype("<f4").tobytes())


def values(result: TensorResult) -> Array:
    (output,) = result.outputs
    return np.frombuffer(output.data, "<f4").reshape(output.shape)


def ids(*numbers: int) -> list[Tensor]:
    return [Tensor("ids", "INT64", (1, len(numbers)), np.array(numbers, dtype="<i8").tobytes())]


class Gate:
    """Stands before a session: runs wait until they are let through."""

    def __init__(self, engine: OnnxEngine) -> None:
        self._session = engine._session
        self._gate = threading.Event()
        self.rows: list[int] = []
        engine._session = self

    def run(self, names: Sequence[str] | None, feed: dict[str, Array]) -> Any:
        self.rows.append(len(next(iter(feed.values()))))
        assert self._gate.wait(20)
        return self._session.run(names, feed)

    def open(self) -> None:
        self._gate.set()


async def test_it_answers_as_onnxruntime_does_and_tells_what_it_is(model: Models) -> None:
    async with loaded(model("mlp")) as engine:
        assert engine.inputs == (TensorSpec("x", "FP32", (-1, 256)),)
        assert engine.outputs == (TensorSpec("y", "FP32", (-1, 10)),)
        assert engine.info.engine == f"onnxruntime {onnxruntime.__version__}"
        assert engine.info.provider == "CPUExecutionProvider"
        assert engine.info.profile is not None
        tensor = row(1)
        result = await engine.infer([tensor], [], deadline=within())
        wanted = onnxruntime.InferenceSession(str(model("mlp"))).run(None, {"x": np.frombuffer(tensor.data, "<f4").reshape(1, 256)})[0]
        assert np.allclose(values(result), wanted, atol=1e-6)
        assert (result.rows, result.batch_rows) == (1, 1)
        assert result.computed_s > 0


async def test_the_provider_that_is_told_is_the_one_that_runs(model: Models) -> None:
    async with loaded(model("small_mlp"), providers=["CUDAExecutionProvider", "CPUExecutionProvider"]) as engine:
        assert engine.info.provider == engine._session.get_providers()[0]
    with pytest.raises(InvalidInput, match="none of NoSuchProvider"):
        load_onnx(model("small_mlp"), providers=["NoSuchProvider"])


async def test_requests_that_wait_share_a_run_and_each_gets_what_it_gets_alone(model: Models) -> None:
    async with loaded(model("mlp"), concurrency=1) as engine:
        assert engine.info.batches, engine.batching.why
        alone = [values(await engine.infer([row(seed, rows=1 + seed % 3)], [], deadline=within(), alone=True)) for seed in range(12)]
        gate = Gate(engine)
        asked = [asyncio.create_task(engine.infer([row(0)], [], deadline=within()))]
        await until(lambda: gate.rows == [1])
        asked += [asyncio.create_task(engine.infer([row(seed, rows=1 + seed % 3)], [], deadline=within())) for seed in range(1, 12)]
        await until(lambda: engine.load == (1, 11))
        gate.open()
        together = await asyncio.gather(*asked)
        assert gate.rows == [1, 23]
        assert [result.rows for result in together] == [1 + seed % 3 for seed in range(12)]
        for one, other in zip(alone, together, strict=True):
            assert one.shape == values(other).shape
            assert np.allclose(one, values(other), atol=1e-5)


async def test_who_asks_to_be_alone_is_alone_and_bit_equal(model: Models) -> None:
    async with loaded(model("conv"), concurrency=1) as engine:
        tensor = Tensor("x", "FP32", (1, 3, 16, 16), row(5, width=768).data)
        first = await engine.infer([tensor], [], deadline=within(), alone=True)
        others = [asyncio.create_task(engine.infer([tensor], [], deadline=within(), alone=bool(number % 2))) for number in range(8)]
        results = await asyncio.gather(*others)
        assert {result.batch_rows for result in results[1::2]} == {1}
        assert {bytes(result.outputs[0].data) for result in results[1::2]} == {bytes(first.outputs[0].data)}
    async with loaded(model("conv")) as again:
        assert again.info.profile == engine.info.profile
        repeated = await again.infer([tensor], [], deadline=within(), alone=True)
        assert bytes(repeated.outputs[0].data) == bytes(first.outputs[0].data)


async def test_a_fresh_process_of_the_same_profile_gives_the_same_bits(model: Models) -> None:
    code = """
import asyncio, hashlib, sys
from pathlib import Path
from placet.inference.engines.base import Tensor
from placet.inference.engines.onnx import load_onnx

async def main():
    engine = load_onnx(Path(sys.argv[1]), threads=2, concurrency=2)
    result = await engine.infer([Tensor("x", "FP32", (1, 256), sys.stdin.buffer.read())], [], deadline=1e9, alone=True)
    print(engine.info.profile.hex(), hashlib.sha256(result.outputs[0].data).hexdigest())

asyncio.run(main())
"""
    tensor = row(7)
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(model("mlp")), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await other.communicate(bytes(tensor.data))
    async with loaded(model("mlp")) as engine:
        result = await engine.infer([tensor], [], deadline=within(), alone=True)
        assert engine.info.profile is not None
        assert said.decode().split() == [engine.info.profile.hex(), hashlib.sha256(result.outputs[0].data).hexdigest()]


async def test_dynamically_quantised_requests_of_two_callers_never_share_a_run(model: Models) -> None:
    async with loaded(model("dynamically_quantised"), concurrency=1) as engine:
        assert engine.info.batches is False
        assert "dynamically quantised" in engine.batching.why
        alone = await engine.infer([row(1, width=64)], [], deadline=within(), alone=True)
        gate = Gate(engine)
        asked = [
            asyncio.create_task(engine.infer([row(seed, width=64, scale=scale)], [], deadline=within()))
            for seed, scale in ((9, 1), (1, 1), (2, 500))
        ]
        await until(lambda: engine.load == (1, 2))
        gate.open()
        _, mine, stranger = await asyncio.gather(*asked)
        assert gate.rows == [1, 1, 1]
        assert (mine.batch_rows, stranger.batch_rows) == (1, 1)
        assert bytes(mine.outputs[0].data) == bytes(alone.outputs[0].data)


async def test_rows_that_change_each_other_are_found_out_at_load(model: Models) -> None:
    async with loaded(model("across_rows")) as engine:
        assert engine.info.batches is False
        assert "other values" in engine.batching.why


async def test_they_are_found_out_by_a_given_warm_up_request_too(model: Models) -> None:
    async with loaded(model("across_rows"), warm_up={"x": np.ones((1, 4), dtype=np.float32)}) as engine:
        assert engine.info.batches is False


async def test_a_model_of_fixed_rows_is_never_batched_and_takes_exactly_those(model: Models) -> None:
    async with loaded(model("fixed_batch")) as engine:
        assert engine.info.batches is False
        result = await engine.infer([row(1, width=4, rows=2)], [], deadline=within())
        assert values(result).shape == (2, 3)
        assert result.rows == 1
        with pytest.raises(InvalidInput) as refused:
            await engine.infer([row(1, width=4, rows=1)], [], deadline=within())
        assert refused.value.field == "/inputs/0/shape"


async def test_batching_can_be_switched_off(model: Models) -> None:
    async with loaded(model("mlp"), batch=False) as engine:
        assert engine.info.batches is False
        results = await asyncio.gather(*(engine.infer([row(seed)], [], deadline=within()) for seed in range(4)))
        assert {result.batch_rows for result in results} == {1}


async def test_requests_of_different_shapes_never_share_a_run(model: Models) -> None:
    async with loaded(model("lookup"), concurrency=1) as engine:
        assert engine.info.batches, engine.batching.why
        gate = Gate(engine)
        asked = [asyncio.create_task(engine.infer(ids(*range(length)), [], deadline=within())) for length in (1, 2, 3, 2, 3, 3)]
        await until(lambda: len(gate.rows) == 1)
        gate.open()
        results = await asyncio.gather(*asked)
        assert [result.batch_rows for result in results] == [1, 2, 3, 2, 3, 3]
        assert [result.outputs[0].shape for result in results] == [(1, length, 16) for length in (1, 2, 3, 2, 3, 3)]


async def test_a_request_that_the_run_refuses_fails_alone_and_its_neighbours_do_not(model: Models) -> None:
    async with loaded(model("lookup"), concurrency=1) as engine:
        gate = Gate(engine)
        asked = [asyncio.create_task(engine.infer(ids(1, number), [], deadline=within())) for number in (0, 1, 99, 3)]
        await until(lambda: len(gate.rows) == 1)
        assert gate.rows == [4]
        gate.open()
        first, second, wrong, fourth = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(wrong, InvalidInput)
        assert wrong.field == "/inputs"
        assert "idx=99" in wrong.message
        for result in (first, second, fourth):
            assert isinstance(result, TensorResult)
        assert engine._session is gate, "a wrong request is no reason to load the model again"


async def test_a_session_that_broke_is_loaded_again(model: Models) -> None:
    class Broken:
        def run(self, *_: Any) -> Any:
            raise RuntimeError("CUDA error: an illegal memory access at /usr/src/secret.cc")

    async with loaded(model("mlp")) as engine:
        before = values(await engine.infer([row(1)], [], deadline=within(), alone=True))
        engine._session = Broken()
        with pytest.raises(Unavailable) as failed:
            await engine.infer([row(1)], [], deadline=within())
        assert failed.value.retryable
        assert "secret" not in failed.value.message
        assert np.array_equal(values(await engine.infer([row(1)], [], deadline=within(), alone=True)), before)


async def test_a_full_queue_a_deadline_and_leaving_are_told_apart(model: Models) -> None:
    async with loaded(model("mlp"), concurrency=1, max_waiting=2) as engine:
        gate = Gate(engine)
        runs = asyncio.create_task(engine.infer([row(1)], [], deadline=within()))
        await until(lambda: gate.rows == [1])
        late = asyncio.create_task(engine.infer([row(1)], [], deadline=within(0.05)))
        leaves = asyncio.create_task(engine.infer([row(1)], [], deadline=within()))
        await until(lambda: engine.load[1] == 2)
        with pytest.raises(RateLimited):
            await engine.infer([row(1)], [], deadline=within())
        leaves.cancel()
        with pytest.raises(DeadlineExceeded):
            await late
        await until(lambda: engine.load == (1, 0))
        with pytest.raises(DeadlineExceeded):
            await engine.infer([row(1)], [], deadline=within(-1))
        gate.open()
        await runs
        assert gate.rows == [1]


async def test_closing_fails_those_who_wait(model: Models) -> None:
    engine = load_onnx(model("mlp"), concurrency=1)
    gate = Gate(engine)
    runs = asyncio.create_task(engine.infer([row(1)], [], deadline=within()))
    await until(lambda: gate.rows == [1])
    waits = asyncio.create_task(engine.infer([row(1)], [], deadline=within()))
    await until(lambda: engine.load == (1, 1))
    closing = asyncio.create_task(engine.close())
    with pytest.raises(Unavailable):
        await waits
    gate.open()
    assert (await runs).rows == 1
    await closing
    with pytest.raises(Unavailable):
        await engine.infer([row(1)], [], deadline=within())


async def test_strings_go_in_and_come_out(model: Models) -> None:
    async with loaded(model("strings")) as engine:
        texts = ["placet", "", "Grüße 🎈"]
        data = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
        result = await engine.infer([Tensor("text", "BYTES", (3,), data)], ["is_placet", "same"], deadline=within())
        is_placet, same = result.outputs
        assert (is_placet.name, is_placet.datatype, bytes(is_placet.data)) == ("is_placet", "BOOL", b"\x01\x00\x00")
        assert (same.name, same.datatype, same.shape, bytes(same.data)) == ("same", "BYTES", (3,), data)
        assert result.rows == 3


async def test_checking_counts_rows_and_runs_nothing(model: Models) -> None:
    async with loaded(model("mlp"), max_request_bytes=8_192) as engine:
        gate = Gate(engine)
        assert engine.check([row(1, rows=7)], []) == 7
        with pytest.raises(InvalidInput) as refused:
            engine.check([row(1)], ["z"])
        assert refused.value.field == "/outputs/0/name"
        with pytest.raises(InvalidInput) as large:
            engine.check([row(1, rows=9)], [])
        assert large.value.code == "too_large"
        assert gate.rows == []


def identity(folder: Path, kind: int, shape: Sequence[int | str] | None) -> Path:
    values = [helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_what_is_not_a_model_says_so_and_names_no_path(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(InvalidInput, match=r"onnxruntime does not load model\.onnx") as refused:
        load_onnx(path)
    assert str(tmp_path) not in refused.value.message


@pytest.mark.parametrize(("kind", "shape", "said"), [(TensorProto.BFLOAT16, ["n"], "bfloat16"), (TensorProto.FLOAT, None, "has no rank")])
def test_a_model_whose_inputs_cannot_be_served_is_refused_at_load(tmp_path: Path, kind: int, shape: list[str] | None, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        load_onnx(identity(tmp_path, kind, shape))


async def test_a_scalar_is_a_tensor_too(tmp_path: Path) -> None:
    async with loaded(identity(tmp_path, TensorProto.INT64, [])) as engine:
        assert engine.info.batches is False
        result = await engine.infer([Tensor("x", "INT64", (), (5).to_bytes(8, "little"))], [], deadline=within())
        assert (result.outputs[0].shape, bytes(result.outputs[0].data)) == ((), (5).to_bytes(8, "little"))
