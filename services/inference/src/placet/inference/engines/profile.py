"""Execution profiles: a digest of everything that makes the outputs of two runs equal bit for bit, as far as was measured.

Measured (onnxruntime 1.31, CPU): outputs are equal across processes and thread counts, and differ in the last bits with the graph
optimisation level, the release of onnxruntime and the number of rows in a run. Hence a profile speaks of runs alone and names all of these,
and the processor's vector instructions, by which onnxruntime chooses its kernels. Runs outside the CPU provider have no profile.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import rfc8785

from placet.core.types import Hash32

__all__ = [
    "CPU",
    "dynamically_quantised",
    "external_files",
    "graph_of",
    "isa_class",
    "profile_document",
    "profile_id",
    "quantisation_of",
    "sha256_of",
]

CPU = "CPUExecutionProvider"

_X86 = "sse4_1 avx f16c fma avx2 avx_vnni avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16"
_ARM = "asimd asimdhp fphp asimddp i8mm bf16 sve sve2 svei8mm svebf16 sme sme2"
_ISA_FLAGS = (*_X86.split(), *_ARM.split())
"""What kernels are chosen by, as the kernel names it."""

_DYNAMIC = frozenset(
    {
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "MatMulIntegerToFloat",
        "QAttention",
    }
)
_STATIC = frozenset({"QuantizeLinear", "QLinearMatMul", "QLinearConv", "QGemm"})
_SMALL_INTEGERS = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4})


def isa_class(cpuinfo: str | None = None) -> str | None:
    """The machine and its vector instructions, for instance "x86_64 avx avx2 fma". None: not known here, so equality is not claimed."""
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text()
        except OSError:
            return None
    lines = [line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.partition(":")[0].strip() in ("flags", "Features")]
    if not lines:
        return None
    # What all cores have: threads run anywhere.
    common = set(lines[0]).intersection(*lines[1:])
    return " ".join([platform.machine(), *(flag for flag in _ISA_FLAGS if flag in common)])


def sha256_of(path: Path) -> Hash32:
    """Digest of a file."""
    with path.open("rb") as file:
        return Hash32(hashlib.file_digest(file, "sha256").digest())


def profile_document(
    files: Iterable[Hash32], *, engine: str, provider: str, isa: str, optimisation: str, quantisation: str
) -> Mapping[str, Any]:
    """What a profile is the digest of."""
    return {
        "v": 1,
        "files": sorted(digest.hex() for digest in files),
        "engine": engine,
        "onnxruntime": f"{ort.__version__} {ort.get_build_info()}",
        "provider": provider,
        "isa": isa,
        "optimisation": optimisation,
        "batch": 1,
        "quantisation": quantisation,
    }


def profile_id(files: Iterable[Hash32], *, engine: str, provider: str, optimisation: str, quantisation: str) -> Hash32 | None:
    """The profile's id: sha-256 of its canonical JSON. None where equality is not claimed."""
    isa = isa_class()
    if provider != CPU or isa is None:
        return None
    document = profile_document(files, engine=engine, provider=provider, isa=isa, optimisation=optimisation, quantisation=quantisation)
    return Hash32(hashlib.sha256(rfc8785.dumps(dict(document))).digest())


# --- what a graph says


def graph_of(path: Path) -> onnx.ModelProto:
    """The graph without its external weights."""
    return onnx.load(str(path), load_external_data=False)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)
            for inner in attribute.graphs:
                yield from _nodes(inner)


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from _initializers(attribute.g)
            for inner in attribute.graphs:
                yield from _initializers(inner)


def _operators(model: onnx.ModelProto) -> set[str]:
    found = {node.op_type for node in _nodes(model.graph)}
    for function in model.functions:
        found |= {node.op_type for node in function.node}
    return found


def dynamically_quantised(model: onnx.ModelProto) -> bool:
    """Whether activations are quantised by scales taken from a whole tensor: then rows of one run change each other."""
    return not _DYNAMIC.isdisjoint(_operators(model))


def quantisation_of(model: onnx.ModelProto) -> str:
    """ "dynamic", "static", "weights" (stored as integers, computed as floats) or "none"."""
    operators = _operators(model)
    if not _DYNAMIC.isdisjoint(operators):
        return "dynamic"
    if not _STATIC.isdisjoint(operators):
        return "static"
    if "MatMulNBits" in operators or any(tensor.data_type in _SMALL_INTEGERS for tensor in _initializers(model.graph)):
        return "weights"
    return "none"


def external_files(path: Path, model: onnx.ModelProto) -> list[Path]:
    """Files beside the graph that hold weights."""
    names = {entry.value for tensor in _initializers(model.graph) for entry in tensor.external_data if entry.key == "location"}
    return sorted(path.parent / name for name in names)
