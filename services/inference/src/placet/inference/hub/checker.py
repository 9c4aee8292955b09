"""What is checked of an upload, in a child process of its own with limits on memory, time and files: models are hostile input.

`python -I -m placet.inference.hub.checker FOLDER KIND MEMORY_BYTES CPU_S [zkml]` reads the files of a model from FOLDER and prints one line
of JSON: what was found, or {"refused": …, "field": …}. It opens no file outside FOLDER and no socket.

The checks, in order: 1 the files an engine needs are there and no larger than their limits; 2 the ONNX file parses; 3 opsets and operators
are known to the runtime (custom operators and local functions are not), subgraphs are nested no deeper than a bound; 4 external data stays
inside the folder and inside its files; 5 ONNX's own checker, with shape inference; 6 no tensor of a known size exceeds a bound; 7 the
runtime loads and runs it within the limits; 8 the configuration of language and embedding models; 9 for mode zkml, that it can be proven.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_ONNX_BYTES = 2 << 30
MAX_JSON_BYTES = 64 << 20
MAX_NODES = 200_000
MAX_GRAPH_DEPTH = 8
MAX_TENSOR_ELEMENTS = 1 << 31
MAX_TENSORS = 64
QUANTISED_AT_RUN_TIME = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulInteger", "ConvInteger"})
"""Operators whose scales come from the whole tensor: one caller's row changes another's answer (facts of inference, 3.3)."""

DATATYPES = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
    16: "BF16",
}
"""ONNX's numbers of element types, as the Open Inference Protocol names them."""

MODEL_FILE = {"tensors": "model.onnx", "text": "model.onnx", "embedding": "model.onnx"}
NEEDED = {
    "tensors": ("model.onnx",),
    "text": ("model.onnx", "genai_config.json", "tokenizer.json", "tokenizer_config.json"),
    "embedding": ("model.onnx", "tokenizer.json"),
}


class Refused(Exception):
    """The upload breaks a rule. `field` names the file or the part."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass
class Found:
    """What an upload turned out to be."""

    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    opsets: dict[str, int] = field(default_factory=dict)
    ops: list[str] = field(default_factory=list)
    parameters: int = 0
    dynamicQuantisation: bool = False  # noqa: N815 - as the manifest has it
    contextLength: int | None = None  # noqa: N815
    dimensions: int | None = None
    zkNetworkSha256: str | None = None  # noqa: N815


def check(folder: Path, kind: str, *, zkml: bool = False) -> Found:
    """Check an upload. Raises Refused."""
    import onnx

    for name in NEEDED[kind]:
        if not (folder / name).is_file():
            raise Refused(f"{name} is missing: a model of kind {kind} has {', '.join(NEEDED[kind])}", name)
    path = folder / MODEL_FILE[kind]
    if path.stat().st_size > MAX_ONNX_BYTES:
        raise Refused(f"{path.name}: {path.stat().st_size} bytes, at most {MAX_ONNX_BYTES}; keep weights in external data", path.name)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf's own errors
        raise Refused(f"{path.name}: not an ONNX file ({type(error).__name__})", path.name) from None
    if not model.graph.node:
        raise Refused(f"{path.name}: a graph without nodes", path.name)
    if model.functions:
        raise Refused(f"{path.name}: local functions ({model.functions[0].name[:64]}); inline them", "functions")
    found = Found(opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import})
    standard = _standard_operators()
    known = standard | _kernels()
    is_standard = True
    ops: set[str] = set()
    nodes = 0
    for graph, depth in _graphs(model.graph):
        if depth > MAX_GRAPH_DEPTH:
            raise Refused(f"subgraphs are nested deeper than {MAX_GRAPH_DEPTH}", "graph")
        nodes += len(graph.node)
        if nodes > MAX_NODES:
            raise Refused(f"more than {MAX_NODES} nodes", "graph")
        for node in graph.node:
            domain = node.domain or "ai.onnx"
            if (domain, node.op_type) not in known:
                raise Refused(f"operator {domain}.{node.op_type} is not one of the runtime's: custom operators are not run", "ops")
            is_standard &= (domain, node.op_type) in standard
            ops.add(node.op_type if domain == "ai.onnx" else f"{domain}.{node.op_type}")
            found.dynamicQuantisation |= node.op_type in QUANTISED_AT_RUN_TIME
        for tensor in _tensors(graph):
            _check_external(tensor, folder)
            found.parameters += _elements(tensor.dims, f"initializer {tensor.name[:64]}")
    found.ops = sorted(ops)
    if is_standard:  # ONNX's checker knows no others; the runtime checks those when it loads them
        _check_by_onnx(path, folder)
    found.inputs = _specs(model.graph.input, {tensor.name for tensor in model.graph.initializer})
    found.outputs = _specs(model.graph.output, set())
    _load(path, found.inputs, run=kind != "text")
    if zkml:
        found.zkNetworkSha256 = _network(path, kind)
    if kind == "text":
        found.contextLength = _context_length(folder)
    elif kind == "embedding":
        found.dimensions = _dimensions(found.outputs)
        found.contextLength = _sequence_length(folder)
    return found


def _network(path: Path, kind: str) -> str:
    """The network that proofs are about."""
    from placet.core.errors import InvalidInput
    from placet.inference.proofs.prover import read_network

    if kind != "tensors":
        raise Refused(f"zkml: a model of kind {kind} cannot be proven", "zkml")
    try:
        return read_network(path).digest().hex()
    except InvalidInput as error:
        raise Refused(error.message, error.field or "zkml") from None


def _standard_operators() -> set[tuple[str, str]]:
    """(domain, operator) of ONNX's own."""
    import onnx.defs

    return {(schema.domain or "ai.onnx", schema.name) for schema in onnx.defs.get_all_schemas() if schema.domain in ("", "ai.onnx.ml")}


def _kernels() -> set[tuple[str, str]]:
    """(domain, operator) of which the installed runtime has a kernel."""
    import onnxruntime

    state = onnxruntime.capi.onnxruntime_pybind11_state
    return {(kernel.domain or "ai.onnx", kernel.op_name) for kernel in state.get_all_opkernel_def()}


def _graphs(graph: Any) -> Iterator[tuple[Any, int]]:
    """A graph and the graphs inside its nodes' attributes, with their depth; without recursion."""
    waiting = [(graph, 0)]
    while waiting:
        current, depth = waiting.pop()
        yield current, depth
        if depth > MAX_GRAPH_DEPTH:
            return
        for node in current.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append((attribute.g, depth + 1))
                waiting.extend((inner, depth + 1) for inner in attribute.graphs)


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _elements(dims: Any, what: str) -> int:
    count = 1
    for size in dims:
        if size < 0:
            raise Refused(f"{what}: a negative size", "graph")
        count *= size
        if count > MAX_TENSOR_ELEMENTS:
            raise Refused(f"{what}: more than {MAX_TENSOR_ELEMENTS} elements", "graph")
    return count


def _check_external(tensor: Any, folder: Path) -> None:
    """External data lies in the folder, in a file of the model, inside that file."""
    if tensor.data_location != 1 and not tensor.external_data:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    what = f"external data of {tensor.name[:64]!r}"
    path = folder / location
    root = folder.resolve()
    if not location or location.startswith(("/", "\\")) or "\0" in location or ".." in Path(location.replace("\\", "/")).parts:
        raise Refused(f"{what}: location {location[:80]!r} leaves the model's folder", "external_data")
    if path.is_symlink() or not path.is_file() or root not in path.resolve().parents:
        raise Refused(f"{what}: {location[:80]!r} is no file of this model", "external_data")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError:
        raise Refused(f"{what}: offset and length are numbers", "external_data") from None
    if offset < 0 or length < 0 or offset + length > path.stat().st_size:
        raise Refused(f"{what}: reaches beyond the end of {location[:80]!r}", "external_data")


def _check_by_onnx(path: Path, folder: Path) -> None:
    import onnx

    inferred_path = folder / ".inferred.onnx"
    try:
        onnx.checker.check_model(str(path), full_check=False)
        onnx.shape_inference.infer_shapes_path(
            str(path), str(folder / ".inferred.onnx"), check_type=True, strict_mode=False, data_prop=False
        )
        inferred = onnx.load(str(folder / ".inferred.onnx"), load_external_data=False)
    except Exception as error:  # noqa: BLE001 - onnx raises several kinds
        raise Refused(f"ONNX's checker: {_first_line(error)}", path.name) from None
    finally:
        inferred_path.unlink(missing_ok=True)
    for value in inferred.graph.value_info:
        shape = value.type.tensor_type.shape
        _elements([max(1, dim.dim_value) for dim in shape.dim], f"tensor {value.name[:64]}")


def _specs(values: Any, weights: set[str]) -> list[dict[str, Any]]:
    out = []
    for value in values:
        if value.name in weights:
            continue
        if not value.type.HasField("tensor_type"):
            raise Refused(f"{value.name[:64]!r} is no tensor: sequences, maps and optionals cannot be served", "graph")
        tensor = value.type.tensor_type
        if tensor.elem_type not in DATATYPES:
            raise Refused(f"{value.name[:64]!r} has element type {tensor.elem_type}, which cannot be served", "graph")
        shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
        _elements([max(1, size) for size in shape], f"{value.name[:64]!r}")
        out.append({"name": value.name, "datatype": DATATYPES[tensor.elem_type], "shape": shape})
    if len(out) > MAX_TENSORS:
        raise Refused(f"more than {MAX_TENSORS} inputs or outputs", "graph")
    return out


def _load(path: Path, inputs: list[dict[str, Any]], *, run: bool) -> None:
    """Load it, and run it once on zeros, each free size 1: what needs more than the limits here is not run beside other people's models."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - the runtime raises several kinds
        raise Refused(f"the runtime does not load it: {_first_line(error)}", path.name) from None
    if not run:
        return
    try:
        session.run(None, {spec["name"]: _zeros(spec) for spec in inputs})
    except Exception as error:  # noqa: BLE001
        # Many models do not run on sizes of 1; only what it needed is judged.
        if "alloc" in str(error).lower():
            raise Refused(f"one run on zeros needs more memory than there is: {_first_line(error)}", path.name) from None


def _zeros(spec: dict[str, Any]) -> Any:
    import numpy as np

    types = {"FP32": np.float32, "FP64": np.float64, "FP16": np.float16, "BOOL": np.bool_, "BYTES": np.object_, "BF16": np.uint16}
    shape = [max(1, size) for size in spec["shape"]]
    kind = types.get(spec["datatype"]) or getattr(np, spec["datatype"].lower())
    return np.full(shape, "", dtype=kind) if kind is np.object_ else np.zeros(shape, dtype=kind)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _json(folder: Path, name: str) -> Any:
    path = folder / name
    if path.stat().st_size > MAX_JSON_BYTES:
        raise Refused(f"{name}: {path.stat().st_size} bytes, at most {MAX_JSON_BYTES}", name)
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise Refused(f"{name}: not JSON", name) from None


def _context_length(folder: Path) -> int:
    config = _json(folder, "genai_config.json")
    try:
        length = config["model"]["context_length"]
        file = config["model"]["decoder"]["filename"]
    except (KeyError, TypeError):
        raise Refused("genai_config.json: model.context_length and model.decoder.filename wanted", "genai_config.json") from None
    if not isinstance(length, int) or not 1 <= length <= 10**7:
        raise Refused("genai_config.json: model.context_length is a number from 1 to 10,000,000", "genai_config.json")
    if file != MODEL_FILE["text"]:
        raise Refused("genai_config.json: model.decoder.filename must be model.onnx, the file that was checked", "genai_config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        _json(folder, name)
    return length


def _dimensions(outputs: list[dict[str, Any]]) -> int:
    for output in outputs:
        shape = output["shape"]
        if output["datatype"] == "FP32" and len(shape) in (2, 3) and shape[-1] > 0:
            return int(shape[-1])
    raise Refused("an embedding model has an FP32 output [batch, tokens, dimensions] or [batch, dimensions]", "outputs")


def _sequence_length(folder: Path) -> int:
    tokenizer = _json(folder, "tokenizer.json")
    truncation = tokenizer.get("truncation") if isinstance(tokenizer, dict) else None
    length = truncation.get("max_length") if isinstance(truncation, dict) else None
    return length if isinstance(length, int) and 1 <= length <= 10**6 else 512


def limit(memory_bytes: int, cpu_s: int) -> None:
    """Bound this process for good: memory, CPU time, files it may write, processes it may start."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_ONNX_BYTES, MAX_ONNX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Print what was found, or what is refused; anything else that happens is the caller's to report."""
    folder, kind, memory_bytes, cpu_s = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    limit(memory_bytes, cpu_s)
    answer: dict[str, Any]
    try:
        answer = {"found": vars(check(folder, kind, zkml="zkml" in sys.argv[5:]))}
    except Refused as refused:
        answer = {"refused": str(refused), "field": refused.field}
    except MemoryError:
        answer = {"refused": f"needs more than {memory_bytes} bytes of memory", "field": "memory"}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
