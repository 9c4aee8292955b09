"""Open Inference V2 with the client its users have, unchanged; the receipt checked against what was sent and what came back."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tritonclient.utils import InferenceServerException

from placet.core import receipts
from placet.core.errors import ModeUnavailable, NotFound
from placet.core.receipts import TensorDigest
from placet.core.types import Hash32
from placet.sdk.client import Client
from tests.e2e.inference.conftest import Town
from tests.support import onnx_files
from tests.support.authorization import eventually


def connect(town: Town) -> Any:
    return triton.InferenceServerClient(town.network.gateway_url.removeprefix("http://"))


def headers(town: Town) -> dict[str, str]:
    return {"authorization": f"Bearer {town.network.api_key}"}


def ask(town: Town, rows: np.ndarray[Any, Any], *, model: str = "alice/linear", binary: bool = True, **more: Any) -> Any:
    """One inference with the stock client, off the event loop on which the services run."""
    with connect(town) as client:
        tensor = triton.InferInput("x", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows, binary_data=binary)
        wanted = [triton.InferRequestedOutput("y", binary_data=binary)]
        return client.infer(model, [tensor], outputs=wanted, headers=headers(town), **more)


def expected(rows: np.ndarray[Any, Any], content: bytes) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = ort.InferenceSession(content).run(None, {"x": rows})[0]
    return found


def digest(name: str, values: np.ndarray[Any, Any]) -> TensorDigest:
    return TensorDigest(name, "FP32", values.shape, Hash32(hashlib.sha256(values.tobytes()).digest()))


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
async def test_the_stock_client_gets_the_model_s_numbers_and_a_receipt_of_them(town: Town, binary: bool) -> None:
    await town.linear()
    rows = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    answer = await asyncio.to_thread(ask, town, rows, binary=binary)
    values = answer.as_numpy("y")
    np.testing.assert_allclose(values, expected(rows, onnx_files.linear()), atol=1e-6)
    parameters = answer.get_response()["parameters"]
    receipt = receipts.decode(parameters["placet_receipt"].encode())
    keys = [replica.runner.node.signer.public_key for replica in map(town.network.inside, ("inference-0", "inference-1"))]
    (key,) = [key for key in keys if receipts.key_id_of(key) == receipt.key_id]
    Ed25519PublicKey.from_public_bytes(key).verify(receipt.signature, receipts.signed_bytes(receipt))
    inputs = receipts.tensors_document([digest("x", rows)])
    body = {"inputs": inputs, "outputs": ["y"], "parameters": {}}
    assert receipt.request_sha256 == receipts.request_digest("tensors", "alice/linear", body)
    assert receipt.response_sha256 == receipts.response_digest({"outputs": receipts.tensors_document([digest("y", values)])})
    assert (receipt.model.publisher, receipt.model.name, receipt.model.version, receipt.rows) == ("alice", "linear", 1, 3)
    routing = json.loads(parameters["placet_routing"])
    assert routing["model"] == "alice/linear@1"
    assert "least busy of 2" in routing["why"]


async def test_the_stock_client_s_other_questions(town: Town) -> None:
    await town.linear()

    def questions() -> None:
        with connect(town) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("alice/linear", headers=headers(town))
            metadata = client.get_model_metadata("alice/linear", headers=headers(town))
            assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
            assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_repository"]
            (entry,) = client.get_model_repository_index(headers=headers(town))
            assert (entry["name"], entry["version"]) == ("alice/linear", "1")

    await asyncio.to_thread(questions)


async def test_refusals_name_what_does_not_fit(town: Town) -> None:
    await town.linear()
    rows = np.zeros((1, 4), np.float32)
    for change, words in (
        ({"rows": np.zeros((1, 5), np.float32)}, "shape"),
        ({"model": "alice/none"}, "not_found"),
        ({"model": "alice/linear", "model_version": "9"}, "not_found"),
        ({"priority": 1}, "parameters/priority"),
    ):
        with pytest.raises(InferenceServerException, match=words):
            await asyncio.to_thread(lambda change=change: ask(town, **{"rows": rows, **change}))  # type: ignore[misc]
    with connect(town) as client, pytest.raises(InferenceServerException, match="unauthenticated"):
        await asyncio.to_thread(client.get_model_metadata, "alice/linear")


async def test_an_alias_that_moves_back_answers_as_before(town: Town) -> None:
    await town.linear()
    rows = np.ones((1, 4), np.float32)
    first = (await asyncio.to_thread(ask, town, rows)).as_numpy("y")
    await town.publish("linear", onnx_files.linear(scale=2.0))
    await asyncio.sleep(1.1)  # what an alias means is remembered for a second
    np.testing.assert_allclose((await asyncio.to_thread(ask, town, rows)).as_numpy("y"), 2 * first, rtol=1e-5)
    await town.alice.move("linear", "prod", 1)
    await asyncio.sleep(1.1)
    np.testing.assert_array_equal((await asyncio.to_thread(ask, town, rows)).as_numpy("y"), first)


async def test_a_jurisdiction_nobody_declares_is_not_served(town: Town) -> None:
    await town.linear()
    rows = np.ones((1, 4), np.float32)
    wants = {"jurisdiction": "DE", "nonce": "0x" + "ab" * 32}
    answer = await asyncio.to_thread(ask, town, rows, parameters={"placet": orjson.dumps(wants).decode()})
    receipt = receipts.decode(answer.get_response()["parameters"]["placet_receipt"].encode())
    assert (receipt.jurisdiction, receipt.client_nonce) == ("DE", b"\xab" * 32)
    for wrong, code in (({"jurisdiction": "FR"}, ModeUnavailable.code), ({"mode": "tee"}, ModeUnavailable.code)):
        with pytest.raises(InferenceServerException, match=code):
            await asyncio.to_thread(ask, town, rows, parameters={"placet": orjson.dumps(wrong).decode()})


async def test_a_replica_that_is_gone_costs_no_answer(town: Town) -> None:
    await town.linear()
    rows = np.ones((1, 4), np.float32)
    await asyncio.to_thread(ask, town, rows)
    await town.network.inside("inference-0")._server.stop(0)
    for _ in range(4):
        await asyncio.to_thread(ask, town, rows)


async def test_receipts_are_kept_for_whom_they_belong_to(town: Town) -> None:
    await town.linear()
    rows = np.ones((2, 4), np.float32)
    given = []
    for _ in range(3):
        answer = await asyncio.to_thread(ask, town, rows)
        given.append(json.loads(answer.get_response()["parameters"]["placet_receipt"]))

    async def kept() -> Any:
        page = (await town.client.request("GET", "/api/v1/receipts?limit=2"))[1]
        return page if page["after"] else None

    page = await eventually(kept)
    rest = (await town.client.request("GET", f"/api/v1/receipts?limit=2&after={page['after']}"))[1]
    assert sorted([*page["receipts"], *rest["receipts"]], key=lambda r: r["id"]) == sorted(given, key=lambda r: r["id"])
    assert (await town.client.request("GET", f"/api/v1/receipts/{given[0]['id']}"))[1] == given[0]
    table = await town.client.text("/api/v1/receipts", accept="text/csv")
    assert table.splitlines()[0].startswith("id,finishedAt,surface,model")
    assert len(table.splitlines()) == 4
    stranger = await town.network.new_api_key("stranger")
    async with Client(town.network.gateway_url, stranger) as other:
        assert (await other.request("GET", "/api/v1/receipts"))[1]["receipts"] == []
        with pytest.raises(NotFound):
            await other.request("GET", f"/api/v1/receipts/{given[0]['id']}")


async def test_the_stock_grpc_client_gets_the_same(town: Town) -> None:
    await town.linear()
    rows = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
    metadata = headers(town)

    def questions(raw: bool) -> Any:
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{town.network.inside('gateway').grpc_port}") as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("alice/linear", headers=metadata)
            assert client.get_model_metadata("alice/linear", headers=metadata).inputs[0].shape == [-1, 4]
            (entry,) = client.get_model_repository_index(headers=metadata).models
            assert entry.name == "alice/linear"
            tensor = triton_grpc.InferInput("x", [3, 4], "FP32")
            tensor.set_data_from_numpy(rows)
            if not raw:  # as a client without numpy sends it
                tensor._raw_content = None
                tensor._input.contents.fp32_contents.extend(float(value) for value in rows.ravel())
            answer = client.infer("alice/linear", [tensor], headers=metadata, request_id="7")
            with pytest.raises(InferenceServerException, match="no model"):
                client.infer("alice/none", [tensor], headers=metadata)
            with pytest.raises(InferenceServerException, match="Bearer"):
                client.infer("alice/linear", [tensor])
            return answer

    for raw in (True, False):
        answer = await asyncio.to_thread(questions, raw)
        np.testing.assert_allclose(answer.as_numpy("y"), expected(rows, onnx_files.linear()), atol=1e-6)
        response = answer.get_response()
        assert response.id == "7"
        receipt = receipts.decode(response.parameters["placet_receipt"].string_param.encode())
        body = {"inputs": receipts.tensors_document([digest("x", rows)]), "outputs": [], "parameters": {}}
        assert receipt.request_sha256 == receipts.request_digest("tensors", "alice/linear", body)


async def test_the_replica_itself_answers_callers_inside_the_cluster(town: Town) -> None:
    await town.linear()
    rows = np.ones((2, 4), np.float32)

    def inside() -> Any:
        with triton.InferenceServerClient(f"127.0.0.1:{town.network.inside('inference-0').http_port}") as client:
            tensor = triton.InferInput("x", [2, 4], "FP32")
            tensor.set_data_from_numpy(rows)
            plain = client.infer("alice/linear", [tensor])
            signed = client.infer("alice/linear", [tensor], model_version="1", headers={"placet-receipt": "true"})
            with pytest.raises(InferenceServerException, match="not_found"):
                client.infer("alice/none", [tensor])
            return plain, signed

    plain, signed = await asyncio.to_thread(inside)
    np.testing.assert_array_equal(plain.as_numpy("y"), signed.as_numpy("y"))
    np.testing.assert_allclose(plain.as_numpy("y"), expected(rows, onnx_files.linear()), atol=1e-6)
    assert "parameters" not in plain.get_response()
    assert receipts.decode(signed.get_response()["parameters"]["placet_receipt"].encode()).rows == 2
