"""Models of tensors on onnxruntime.

The graph is loaded into one session. Requests run in native threads; onnxruntime releases the interpreter's lock while it computes. Whether
requests of several callers may share a run is decided per model, at load, by measuring and by comparing: see `_batching_of`.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from placet.core.errors import InvalidInput, PlacetError, Unavailable
from placet.core.types import Hash32
from placet.inference.engines import profile
from placet.inference.engines.base import EngineInfo, Tensor, TensorResult, TensorSpec
from placet.inference.engines.batching import Batching, Runner, choose, processors
from placet.inference.engines.tensors import Array, arrays_of, tensor_of, wanted_outputs

__all__ = ["CUDA", "OnnxEngine", "load_onnx", "new_session", "refusal"]

log = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"
OPTIMISATION = "all"

_TOLERANCE = 1e-5
_SIZES = (8, 32)
_MEASURE_S = 1.0
_DYNAMIC_SIZE = 8
_STATUS = re.compile(r"Status Message: (.*)", re.DOTALL)
_PATH = re.compile(r"\S*/\S+")

_DATATYPES: Mapping[str, str] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}

_Feed = tuple[dict[str, Array], tuple[str, ...]]


def load_onnx(
    path: Path,
    *,
    providers: Sequence[str] | None = None,
    threads: int = 1,
    concurrency: int | None = None,
    max_waiting: int = 256,
    max_waiting_bytes: int = 256 << 20,
    max_request_bytes: int = 64 << 20,
    batch: bool = True,
    warm_up: Mapping[str, Array] | None = None,
) -> OnnxEngine:
    """Load a model. Blocks, up to seconds: call it in a thread.

    `providers` None: CUDA when it is there, then CPU. `threads` compute one run; `concurrency` runs are at once (None: as many as the
    processors allow). `warm_up`: a request of one row, by input; None: one is made up. `batch` False: never share a run.

    Raises:
        InvalidInput: not a model, or one that this engine cannot run; says why.
    """
    session, optimised = new_session(path, providers=providers, threads=threads)
    graph = profile.graph_of(path)
    files = [path, *profile.external_files(path, graph)]
    provider = session.get_providers()[0]
    quantisation = profile.quantisation_of(graph)
    return OnnxEngine(
        session,
        # A new session, when this one breaks.
        renew=lambda: new_session(path, providers=providers, threads=threads)[0],
        profile_id=profile.profile_id(
            [profile.sha256_of(file) for file in files],
            engine=f"onnxruntime {ort.__version__}",
            provider=provider,
            optimisation=optimised,
            quantisation=quantisation,
        ),
        unranked=_unranked(graph),
        quantisation=quantisation,
        concurrency=concurrency or max(1, processors() // threads),
        max_waiting=max_waiting,
        max_waiting_bytes=max_waiting_bytes,
        max_request_bytes=max_request_bytes,
        batch=batch,
        warm_up=warm_up,
    )


def new_session(path: Path, *, providers: Sequence[str] | None, threads: int) -> tuple[Any, str]:
    """A session, and its optimisation level's name. Raises InvalidInput."""
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # what a request did wrong is told to its caller, not to our log
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = list(providers) if providers is not None else [CUDA, profile.CPU]
    usable = [name for name in wanted if name in ort.get_available_providers()]
    if not usable:
        raise InvalidInput(f"none of {', '.join(wanted)} is in this build of onnxruntime", field="providers")
    try:
        return ort.InferenceSession(str(path), options, providers=usable), OPTIMISATION
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no base class
        raise InvalidInput(f"onnxruntime does not load {path.name}: {refusal(error)}", field="model") from None


def refusal(error: Exception) -> str:
    """What onnxruntime says of a failed run, for callers: short, without paths of this machine."""
    text = str(error)
    found = _STATUS.search(text)
    return _PATH.sub("…", " ".join((found.group(1) if found else text).split()))[:300]


def _unranked(graph: Any) -> frozenset[str]:
    """Inputs and outputs whose rank the graph does not say: onnxruntime shows them like scalars."""
    values = [*graph.graph.input, *graph.graph.output]
    return frozenset(value.name for value in values if not value.type.tensor_type.HasField("shape"))


@dataclass(frozen=True, slots=True)
class _Value:
    spec: TensorSpec
    symbols: tuple[str | None, ...]


def _value(node: Any) -> _Value:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        raise InvalidInput(f"{node.name!r} is {node.type}: tensors of {', '.join(sorted(_DATATYPES.values()))} are served", field="model")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return _Value(TensorSpec(node.name, datatype, shape), tuple(size if isinstance(size, str) else None for size in node.shape))


class OnnxEngine:
    """`TensorEngine` over one onnxruntime session. `batching` says what was decided about shared runs, and why."""

    def __init__(
        self,
        session: Any,
        *,
        renew: Callable[[], Any],
        profile_id: Hash32 | None,
        unranked: frozenset[str],
        quantisation: str,
        concurrency: int,
        max_waiting: int,
        max_waiting_bytes: int,
        max_request_bytes: int,
        batch: bool,
        warm_up: Mapping[str, Array] | None,
    ) -> None:
        started = time.perf_counter()
        self._session = session
        self._renew = renew
        self._renewing = threading.Lock()
        self._max_request_bytes = max_request_bytes
        values = [_value(node) for node in session.get_inputs()]
        self.inputs = tuple(value.spec for value in values)
        for spec in self.inputs:
            if spec.name in unranked:
                raise InvalidInput(f"input {spec.name!r} has no rank", field="model")
        outputs = [_value(node).spec for node in session.get_outputs()]
        self._row_shaped = bool(self.inputs) and all(spec.shape[:1] == (-1,) for spec in self.inputs)
        self._sample = dict(warm_up) if warm_up is not None else _sample(values, 1, seed=0)
        seen = self._try(self._sample)
        if seen is None:
            log.info("the model does not run on made-up inputs: it is neither warmed up nor batched")
        self.outputs = tuple(
            TensorSpec(spec.name, spec.datatype, (-1,) * (seen[position].ndim if seen is not None else 1))
            if spec.name in unranked
            else spec
            for position, spec in enumerate(outputs)
        )
        self.batching = self._decide(values, quantisation, runs=seen is not None, batch=batch, given=warm_up is not None)
        if seen is None:
            self._sample = {}
        self._datatypes = {spec.name: spec.datatype for spec in self.outputs}
        self._runner: Runner[_Feed, list[Array]] = Runner(
            self._run,
            concurrency=concurrency,
            max_waiting=max_waiting,
            max_waiting_bytes=max_waiting_bytes,
            max_rows=self.batching.max_rows,
            name="onnx",
        )
        self.info = EngineInfo(
            engine=f"onnxruntime {ort.__version__}",
            provider=session.get_providers()[0],
            profile=profile_id,
            concurrency=concurrency,
            batches=self.batching.max_rows > 1,
            warm_up_s=time.perf_counter() - started,
        )

    # --- asked from the event loop

    def check(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> int:
        """The request's rows, when it fits the model; nothing runs. Raises InvalidInput."""
        wanted_outputs(outputs, self.outputs)
        return self._rows(arrays_of(inputs, self.inputs, self._max_request_bytes))

    async def infer(self, inputs: Sequence[Tensor], outputs: Sequence[str], *, deadline: float, alone: bool = False) -> TensorResult:
        """As `TensorEngine.infer`."""
        names = wanted_outputs(outputs, self.outputs)
        arrays = arrays_of(inputs, self.inputs, self._max_request_bytes)
        rows = self._rows(arrays)
        key = None if alone else self._key(arrays, names)
        size = sum(memoryview(tensor.data).nbytes for tensor in inputs)
        done = await self._runner.submit((arrays, names), rows=rows, key=key, deadline=deadline, size=size)
        tensors = tuple(tensor_of(name, self._datatypes[name], array) for name, array in zip(names, done.out, strict=True))
        return TensorResult(tensors, rows, done.batch_rows, done.queued_s, done.computed_s)

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting)."""
        return self._runner.load

    async def close(self) -> None:
        """As `TensorEngine.close`."""
        await self._runner.close()

    def _rows(self, arrays: Mapping[str, Array]) -> int:
        """Rows: the first dimension where every input has a free one, 1 otherwise."""
        return max(len(array) for array in arrays.values()) if self._row_shaped else 1

    def _key(self, arrays: Mapping[str, Array], names: tuple[str, ...]) -> Hashable | None:
        """What requests that share a run have in common; None for one that cannot share."""
        if self.batching.max_rows == 1:
            return None
        rows = {len(array) for array in arrays.values()}
        if len(rows) != 1 or rows == {0}:
            return None
        return (names, *(array.shape[1:] for array in arrays.values()))

    # --- in a thread

    def _run(self, feeds: Sequence[_Feed]) -> list[list[Array] | PlacetError]:
        if len(feeds) > 1:
            together = self._run_together(feeds)
            if together is not None:
                return list(together)
        return [self._run_alone(arrays, names) for arrays, names in feeds]

    def _run_together(self, feeds: Sequence[_Feed]) -> list[list[Array]] | None:
        """Outputs by feed; None when the run failed, so that each runs again alone and only the wrong one fails."""
        names = feeds[0][1]
        try:
            stacked = {name: np.concatenate([arrays[name] for arrays, _ in feeds]) for name in feeds[0][0]}
            outs = self._session.run(names, stacked)
        except Exception:  # noqa: BLE001 - onnxruntime's errors have no base class
            return None
        sizes = [len(next(iter(arrays.values()))) for arrays, _ in feeds]
        if any(out.shape[:1] != (sum(sizes),) for out in outs):
            return None
        ends = np.cumsum(sizes)
        return [[out[end - size : end] for out in outs] for size, end in zip(sizes, ends, strict=True)]

    def _run_alone(self, arrays: Mapping[str, Array], names: Sequence[str]) -> list[Array] | PlacetError:
        session = self._session
        try:
            out: list[Array] = session.run(names, arrays)
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no base class
            return self._diagnosis(error, session)
        return out

    def _diagnosis(self, error: Exception, broken: Any) -> PlacetError:
        """Whose fault it was: a session that runs the warm-up request is sound, and the request was wrong."""
        if not self._sample or self._try(self._sample) is not None:
            return InvalidInput(f"the model cannot run on these inputs: {refusal(error)}", field="/inputs")
        with self._renewing:
            if self._session is broken:
                log.warning("the session no longer runs its warm-up request (%s): it is loaded again", type(error).__name__)
                try:
                    self._session = self._renew()
                except InvalidInput as failure:
                    return Unavailable(f"the engine broke and does not load again: {failure.message}")
        return Unavailable("the engine broke and was loaded again", retry_after_ms=100)

    def _try(self, arrays: Mapping[str, Array]) -> list[Array] | None:
        try:
            out: list[Array] = self._session.run(None, arrays)
        except Exception:  # noqa: BLE001 - onnxruntime's errors have no base class
            return None
        return out

    # --- at load

    def _decide(self, values: Sequence[_Value], quantisation: str, *, runs: bool, batch: bool, given: bool) -> Batching:
        if not batch:
            return Batching(1, "switched off")
        if quantisation == "dynamic":
            return Batching(1, "dynamically quantised: rows of one run change each other")
        if not self._row_shaped or any(spec.shape[:1] != (-1,) for spec in self.outputs):
            return Batching(1, "not every input and output has a free first dimension")
        if not runs:
            return Batching(1, "it does not run on made-up inputs")
        singles = [_sample(values, 1, seed=seed) for seed in range(max(_SIZES))]
        if given:
            singles = [_scaled(self._sample, 2.0 ** (row % 5 - 2)) for row in range(max(_SIZES))]
        return self._batching_of(singles)

    def _batching_of(self, singles: Sequence[Mapping[str, Array]]) -> Batching:
        """Measures runs of 1 row against runs of 8 and 32, and compares what they give."""
        budget_ends = time.perf_counter() + _MEASURE_S
        seconds = {1: self._seconds(singles[0], budget_ends)}
        for size in _SIZES:
            if seconds[1] * size > _MEASURE_S:
                break
            together = {name: np.concatenate([single[name] for single in singles[:size]]) for name in singles[0]}
            outs = self._try(together)
            if outs is None:
                return Batching(1, f"{size} rows together do not run")
            for row, single in enumerate(singles[:size]):
                alone = self._try(single)
                if alone is None or not all(_equal(out[row : row + 1], one) for out, one in zip(outs, alone, strict=True)):
                    return Batching(1, f"{size} rows together give other values than one by one")
            seconds[size] = self._seconds(together, budget_ends + size * seconds[1])
        return choose(seconds)

    def _seconds(self, arrays: Mapping[str, Array], ends: float) -> float:
        """The best of several runs."""
        best, runs = float("inf"), 0
        while runs < 3 or (runs < 30 and time.perf_counter() < ends):
            started = time.perf_counter()
            self._session.run(None, arrays)
            best, runs = min(best, time.perf_counter() - started), runs + 1
        return best


def _equal(batched: Array, alone: Array) -> bool:
    if batched.shape != alone.shape or batched.dtype != alone.dtype:
        return False
    if batched.dtype.kind == "f":
        return bool(np.allclose(batched, alone, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True))
    return bool(np.array_equal(batched, alone))


def _scaled(arrays: Mapping[str, Array], factor: float) -> dict[str, Array]:
    """The same request with other floats: rows that are all alike would not notice each other."""
    return {name: (array * factor).astype(array.dtype) if array.dtype.kind == "f" else array for name, array in arrays.items()}


def _sample(values: Sequence[_Value], rows: int, *, seed: int) -> dict[str, Array]:
    """Made-up inputs: dimensions of one name have one size; numbers differ by row in size too, so that rows that meet are noticed."""
    random = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for value in values:
        free_rows = value.spec.shape[:1] == (-1,)
        shape = tuple(
            (rows if position == 0 and free_rows else _DYNAMIC_SIZE) if size == -1 else size
            for position, size in enumerate(value.spec.shape)
        )
        datatype = value.spec.datatype
        if datatype == "BYTES":
            made[value.spec.name] = np.full(shape, f"row {seed}", dtype=object)
        elif datatype == "BOOL":
            made[value.spec.name] = random.integers(0, 2, shape).astype(np.bool_)
        elif datatype.startswith("FP"):
            made[value.spec.name] = (random.standard_normal(shape) * 2.0 ** random.integers(-2, 3)).astype(f"f{int(datatype[2:]) // 8}")
        else:
            kind = "u" if datatype.startswith("U") else "i"
            made[value.spec.name] = random.integers(0, 2, shape).astype(f"{kind}{int(datatype.lstrip('UINT')) // 8}")
    return made
