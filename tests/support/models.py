"""Small models for tests and benchmarks, written with numpy and onnx: the same bytes on every machine, no download.

    path = built(cache, "mlp", mlp)

builds once and keeps the folder under a name made of this file's content, so that a changed builder never meets an old model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

FloatArray = npt.NDArray[np.float32]

_IR = 10
_OPSET = 20


def built(cache: Path, name: str, build: Callable[[Path], Path]) -> Path:
    """What `build` makes, from the cache when it is there. Returns the path that `build` returned, inside the cache."""
    key = hashlib.sha256(Path(__file__).read_bytes() + onnx.__version__.encode()).hexdigest()[:16]
    folder = cache / f"{name}-{key}"
    answer = folder / "path.txt"
    if not answer.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
        (made / "path.txt").write_text(str(build(made).relative_to(made)))
        try:
            made.rename(folder)
        except OSError:  # another process was first
            assert answer.exists()
            shutil.rmtree(made)
    return folder / answer.read_text()


def _save(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Mapping[str, npt.NDArray[Any]],
    *,
    microsoft: bool = False,
) -> Path:
    initializers = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(list(nodes), "placet-test", list(inputs), list(outputs), initializers)
    opsets = [helper.make_opsetid("", _OPSET)] + ([helper.make_opsetid("com.microsoft", 1)] if microsoft else [])
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=_IR), path)
    return path


def _value(name: str, kind: int, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def _dense(widths: Sequence[int], batch: int | str, folder: Path, seed: int) -> Path:
    random = np.random.default_rng(seed)
    weights: dict[str, npt.NDArray[Any]] = {}
    nodes, last = [], "x"
    for number, (wide, narrow) in enumerate(pairwise(widths)):
        weights[f"w{number}"] = (random.standard_normal((wide, narrow)) / np.sqrt(wide)).astype(np.float32)
        weights[f"b{number}"] = random.standard_normal(narrow).astype(np.float32)
        final = number == len(widths) - 2
        gemm = "y" if final else f"g{number}"
        nodes.append(helper.make_node("Gemm", [last, f"w{number}", f"b{number}"], [gemm]))
        last = gemm
        if not final:
            nodes.append(helper.make_node("Relu", [gemm], [f"r{number}"]))
            last = f"r{number}"
    inputs, outputs = [_value("x", TensorProto.FLOAT, [batch, widths[0]])], [_value("y", TensorProto.FLOAT, [batch, widths[-1]])]
    return _save(folder, nodes, inputs, outputs, weights)


def mlp(folder: Path) -> Path:
    """x [batch, 256] -> y [batch, 10]; 256-512-256-10, 265,482 parameters."""
    return _dense((256, 512, 256, 10), "batch", folder, 1)


def small_mlp(folder: Path) -> Path:
    """x [batch, 4] -> y [batch, 3]; 4-16-3."""
    return _dense((4, 16, 3), "batch", folder, 2)


def fixed_batch(folder: Path) -> Path:
    """x [2, 4] -> y [2, 3]: a model that takes two rows, no more and no fewer."""
    return _dense((4, 16, 3), 2, folder, 3)


def conv(folder: Path) -> Path:
    """x [batch, 3, 16, 16] -> y [batch, 5]."""
    random = np.random.default_rng(4)
    weights = {
        "k0": (random.standard_normal((8, 3, 3, 3)) / 5).astype(np.float32),
        "k1": (random.standard_normal((8, 8, 3, 3)) / 8).astype(np.float32),
        "w": random.standard_normal((8, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k0"], ["c0"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "k1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("GlobalAveragePool", ["r1"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    inputs = [_value("x", TensorProto.FLOAT, ["batch", 3, 16, 16])]
    return _save(folder, nodes, inputs, [_value("y", TensorProto.FLOAT, ["batch", 5])], weights)


def dynamically_quantised(folder: Path) -> Path:
    """x [batch, 64] -> y [batch, 8]: the scale of the activations is taken over the whole tensor, so rows of one run see each other."""
    random = np.random.default_rng(5)
    weights: dict[str, npt.NDArray[Any]] = {
        "w": random.integers(-127, 128, (64, 8)).astype(np.int8),
        "w_scale": np.array(0.01, dtype=np.float32),
        "w_zero": np.array(0, dtype=np.int8),
    }
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero", "w_zero"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scale", "w_scale"], ["s"]),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    inputs = [_value("x", TensorProto.FLOAT, ["batch", 64])]
    return _save(folder, nodes, inputs, [_value("y", TensorProto.FLOAT, ["batch", 8])], weights)


def strings(folder: Path) -> Path:
    """text [batch] BYTES -> same [batch] BYTES, is_placet [batch] BOOL."""
    words = helper.make_node("Constant", [], ["word"], value=numpy_helper.from_array(np.array(["placet"], dtype=object)))
    nodes = [words, helper.make_node("Identity", ["text"], ["same"]), helper.make_node("Equal", ["text", "word"], ["is_placet"])]
    outputs = [_value("same", TensorProto.STRING, ["batch"]), _value("is_placet", TensorProto.BOOL, ["batch"])]
    return _save(folder, nodes, [_value("text", TensorProto.STRING, ["batch"])], outputs, {})


def lookup(folder: Path) -> Path:
    """ids [batch, length] INT64 -> vectors [batch, length, 16]: an id of 10 or more is refused by the run itself."""
    table = np.random.default_rng(6).standard_normal((10, 16)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["table", "ids"], ["vectors"])]
    inputs = [_value("ids", TensorProto.INT64, ["batch", "length"])]
    return _save(folder, nodes, inputs, [_value("vectors", TensorProto.FLOAT, ["batch", "length", 16])], {"table": table})


def across_rows(folder: Path) -> Path:
    """x [batch, 4] -> y [batch, 4]: softmax over the batch, a model whose shapes say that it could be batched and which must not be."""
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=0)]
    inputs = [_value("x", TensorProto.FLOAT, ["batch", 4])]
    return _save(folder, nodes, inputs, [_value("y", TensorProto.FLOAT, ["batch", 4])], {})


def encoder(folder: Path) -> Path:
    """A folder for embeddings: a table of vectors, 16 wide, one a token; and the test tokenizer."""
    vocabulary = _tokenizer(folder, None)
    table = np.random.default_rng(8).standard_normal((vocabulary, 16)).astype(np.float32)
    inputs = [_value(name, TensorProto.INT64, ["batch", "length"]) for name in ("input_ids", "attention_mask")]
    output = _value("last_hidden_state", TensorProto.FLOAT, ["batch", "length", 16])
    _save(folder, [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])], inputs, [output], {"table": table})
    return folder


def dynamically_quantised_encoder(folder: Path) -> Path:
    """As `encoder`, with a layer whose activations are quantised by a scale over the whole tensor."""
    vocabulary = _tokenizer(folder, None)
    random = np.random.default_rng(9)
    weights: dict[str, npt.NDArray[Any]] = {
        "table": (random.standard_normal((vocabulary, 16)) * np.linspace(0.1, 10, vocabulary)[:, None]).astype(np.float32),
        "w": random.integers(-127, 128, (16, 16)).astype(np.int8),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["last_hidden_state"]),
    ]
    inputs = [_value(name, TensorProto.INT64, ["batch", "length"]) for name in ("input_ids", "attention_mask")]
    _save(folder, nodes, inputs, [_value("last_hidden_state", TensorProto.FLOAT, ["batch", "length", 16])], weights)
    return folder


# --- a language model


_LAYERS, _HEADS, _KV_HEADS, _HEAD, _HIDDEN, _INNER, _CONTEXT = 2, 4, 2, 16, 64, 128, 2048
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}{{ raise_exception('a role that is not known') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_CORPUS = (
    "the quick brown fox jumps over the lazy dog and the model answers the question",
    "a receipt says what was asked and what was answered by which model for how much",
    '{"name": "alice", "ok": true, "count": 3}',
)


def language_model(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """A folder for onnxruntime-genai: llama-like, 2 layers, vocabulary 308, context 2048, random weights. Its answers have no sense."""
    vocabulary = _tokenizer(folder, chat_template)
    _decoder(folder, vocabulary)
    config = {
        "model": {
            "type": "llama",
            "bos_token_id": 1,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "context_length": _CONTEXT,
            "vocab_size": vocabulary,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": _HEAD,
                "hidden_size": _HIDDEN,
                "num_attention_heads": _HEADS,
                "num_hidden_layers": _LAYERS,
                "num_key_value_heads": _KV_HEADS,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
            },
        },
        "search": {"do_sample": False, "max_length": _CONTEXT, "past_present_share_buffer": False},
    }
    (folder / "genai_config.json").write_text(json.dumps(config, indent=2))
    return folder


def _tokenizer(folder: Path, chat_template: str | None) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=308, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|end|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return int(tokenizer.get_vocab_size())


def _decoder(folder: Path, vocabulary: int) -> None:
    random = np.random.default_rng(7)
    weights: dict[str, npt.NDArray[Any]] = {}

    def matrix(name: str, *shape: int) -> str:
        weights[name] = (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        return name

    def norm(source: str, name: str) -> str:
        weights[f"{name}.w"] = np.ones(_HIDDEN, dtype=np.float32)
        nodes.append(helper.make_node("SimplifiedLayerNormalization", [source, f"{name}.w"], [name], epsilon=1e-5, axis=-1))
        return name

    def op(kind: str, inputs: Sequence[str], name: str, domain: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [name], domain=domain, **attributes))
        return name

    nodes: list[onnx.NodeProto] = []
    angle = np.arange(_CONTEXT)[:, None] / 10_000 ** (np.arange(_HEAD // 2) * 2 / _HEAD)
    weights["cos"], weights["sin"] = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    weights["one"], weights["axis"] = np.array([1], dtype=np.int64), np.array(1, dtype=np.int64)
    weights["embedding"] = random.standard_normal((vocabulary, _HIDDEN)).astype(np.float32)
    op(
        "Cast",
        [op("Sub", [op("ReduceSum", ["attention_mask", "one"], "seen", keepdims=1), "one"], "last")],
        "seqlens",
        to=TensorProto.INT32,
    )
    op("Cast", [op("Gather", [op("Shape", ["attention_mask"], "mask_shape"), "axis"], "wide", axis=0)], "total", to=TensorProto.INT32)
    hidden = op("Gather", ["embedding", "input_ids"], "embedded")
    inputs = [
        _value(name, TensorProto.INT64, ["batch", wide]) for name, wide in (("input_ids", "length"), ("attention_mask", "total_length"))
    ]
    outputs = [_value("logits", TensorProto.FLOAT, ["batch", "length", vocabulary])]
    for layer in range(_LAYERS):
        here = f"l{layer}"
        normed = norm(hidden, f"{here}.n0")
        q, k, v = (
            op("MatMul", [normed, matrix(f"{here}.{name}.w", _HIDDEN, heads * _HEAD)], f"{here}.{name}")
            for name, heads in (("q", _HEADS), ("k", _KV_HEADS), ("v", _KV_HEADS))
        )
        past = [f"past_key_values.{layer}.{name}" for name in ("key", "value")]
        present = [f"present.{layer}.{name}" for name in ("key", "value")]
        inputs += [_value(name, TensorProto.FLOAT, ["batch", _KV_HEADS, "past_length", _HEAD]) for name in past]
        outputs += [_value(name, TensorProto.FLOAT, ["batch", _KV_HEADS, "total_length", _HEAD]) for name in present]
        nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [q, k, v, *past, "seqlens", "total", "cos", "sin"],
                [f"{here}.attended", *present],
                domain="com.microsoft",
                num_heads=_HEADS,
                kv_num_heads=_KV_HEADS,
                do_rotary=1,
                rotary_interleaved=0,
            )
        )
        mixed = op("MatMul", [f"{here}.attended", matrix(f"{here}.o.w", _HEADS * _HEAD, _HIDDEN)], f"{here}.o")
        hidden = op("Add", [hidden, mixed], f"{here}.a")
        normed = norm(hidden, f"{here}.n1")
        gate = op("MatMul", [normed, matrix(f"{here}.gate.w", _HIDDEN, _INNER)], f"{here}.gate")
        swish = op("Mul", [gate, op("Sigmoid", [gate], f"{here}.sigmoid")], f"{here}.swish")
        up = op("MatMul", [normed, matrix(f"{here}.up.w", _HIDDEN, _INNER)], f"{here}.up")
        inner = op("Mul", [swish, up], f"{here}.inner")
        hidden = op("Add", [hidden, op("MatMul", [inner, matrix(f"{here}.down.w", _INNER, _HIDDEN)], f"{here}.down")], f"{here}.b")
    op("MatMul", [norm(hidden, "final"), matrix("head", _HIDDEN, vocabulary)], "logits")
    _save(folder, nodes, inputs, outputs, weights, microsoft=True)
