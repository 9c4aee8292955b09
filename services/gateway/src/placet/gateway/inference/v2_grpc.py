"""The Open Inference Protocol V2 over gRPC, under the protocol's own service name. Keys travel as metadata, as in HTTP."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import grpc
import orjson

from placet.core import tensors
from placet.core.errors import Internal, InvalidInput, PlacetError, Unavailable
from placet.core.gen import inference_pb2 as pb
from placet.core.gen import open_inference_pb2 as v2
from placet.core.models import Kind, parse_reference
from placet.core.rpc_errors import abort
from placet.core.tensors import DATATYPES, Tensor
from placet.gateway.inference.routing import wants_of
from placet.gateway.inference.service import Call, InferenceService
from placet.gateway.inference.v2_api import EXTENSIONS, index_of, receipt_parameters
from placet.gateway.keys import Authenticator
from placet.gateway.store import ApiKey

log = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
MAX_MESSAGE_BYTES = 64 << 20
_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
Context = Any
Handler = Callable[[Any, ApiKey], Awaitable[Any]]


class V2Grpc:
    """The service's methods, and its server."""

    def __init__(self, inference: InferenceService, authenticator: Authenticator, version: str) -> None:
        self._inference = inference
        self._auth = authenticator
        self._version = version
        self._server: Any = None

    async def start(self, host: str, port: int) -> int:
        """Serve; returns the port. Raises Unavailable when it is taken."""
        options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", MAX_MESSAGE_BYTES)]
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=2048)
        self._server.add_generic_rpc_handlers((self._handlers(),))
        bound = int(self._server.add_insecure_port(f"{host}:{port}"))
        if not bound:
            raise Unavailable(f"port {port} is taken")
        await self._server.start()
        return bound

    async def stop(self, grace_s: float) -> None:
        """Finish what is in hand."""
        if self._server is not None:
            await self._server.stop(grace_s)

    def _handlers(self) -> Any:
        methods: dict[str, tuple[Any, Any, bool, Any]] = {
            "ServerLive": (self._live, v2.ServerLiveRequest, False, v2.ServerLiveResponse),
            "ServerReady": (self._ready, v2.ServerReadyRequest, False, v2.ServerReadyResponse),
            "ServerMetadata": (self._server_metadata, v2.ServerMetadataRequest, False, v2.ServerMetadataResponse),
            "ModelReady": (self._model_ready, v2.ModelReadyRequest, True, v2.ModelReadyResponse),
            "ModelMetadata": (self._model_metadata, v2.ModelMetadataRequest, True, v2.ModelMetadataResponse),
            "RepositoryIndex": (self._index, v2.RepositoryIndexRequest, True, v2.RepositoryIndexResponse),
            "ModelInfer": (self._infer, v2.ModelInferRequest, True, v2.ModelInferResponse),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._guarded(handler, needs_key=needs_key),
                request_deserializer=request.FromString,
                response_serializer=response.SerializeToString,
            )
            for name, (handler, request, needs_key, response) in methods.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _guarded(self, handler: Handler, *, needs_key: bool) -> Callable[[Any, Context], Awaitable[Any]]:
        async def guarded(request: Any, context: Context) -> Any:
            try:
                key: Any = None
                if needs_key:
                    given = {name.lower(): value for name, value in context.invocation_metadata() or ()}
                    key = await self._auth.authenticate(given.get("authorization"))
                return await handler(request, key)
            except PlacetError as error:
                await abort(context, error)
            except Exception:
                log.exception("unexpected error")
                await abort(context, Internal("something went wrong here; it has been logged"))
            raise AssertionError  # abort raises

        return guarded

    async def _live(self, request: Any, key: ApiKey) -> Any:
        return v2.ServerLiveResponse(live=True)

    async def _ready(self, request: Any, key: ApiKey) -> Any:
        return v2.ServerReadyResponse(ready=bool(self._inference.replicas.living()))

    async def _server_metadata(self, request: Any, key: ApiKey) -> Any:
        return v2.ServerMetadataResponse(name="placet", version=self._version, extensions=EXTENSIONS)

    async def _model_ready(self, request: v2.ModelReadyRequest, key: ApiKey) -> Any:
        await self._inference.resolve(parse_reference(_reference(request.name, request.version)))
        return v2.ModelReadyResponse(ready=bool(self._inference.replicas.living()))

    async def _model_metadata(self, request: v2.ModelMetadataRequest, key: ApiKey) -> Any:
        manifest = (await self._inference.resolve(parse_reference(_reference(request.name, request.version)))).manifest
        tensor = v2.ModelMetadataResponse.TensorMetadata
        return v2.ModelMetadataResponse(
            name=f"{manifest.publisher}/{manifest.name}",
            versions=[str(manifest.version)],
            platform="onnxruntime_onnx",
            inputs=[tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in manifest.inputs],
            outputs=[tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in manifest.outputs],
        )

    async def _index(self, request: v2.RepositoryIndexRequest, key: ApiKey) -> Any:
        entries = await index_of(self._inference, only_ready=request.ready)
        return v2.RepositoryIndexResponse(models=[v2.RepositoryIndexResponse.ModelIndex(**entry) for entry in entries])

    async def _infer(self, request: v2.ModelInferRequest, key: ApiKey) -> Any:
        raw = list(request.raw_input_contents)
        if raw and len(raw) != len(request.inputs):
            raise InvalidInput("raw_input_contents: for all inputs or for none", field="raw_input_contents")
        if not 1 <= len(request.inputs) <= tensors.MAX_TENSORS:
            raise InvalidInput(f"inputs: 1 to {tensors.MAX_TENSORS} wanted", field="inputs")
        given = [_tensor(item, at, raw[at] if raw else None) for at, item in enumerate(request.inputs)]
        parameters = {name: _parameter(value) for name, value in request.parameters.items()}
        wants = parameters.get("placet")
        if unknown := parameters.keys() - {"placet"}:
            raise InvalidInput(f"parameters/{min(unknown)}: is not honoured here", field=f"parameters/{min(unknown)}")
        for at, output in enumerate(request.outputs):
            if output.parameters:
                raise InvalidInput(f"outputs/{at}/parameters: none is honoured here", field=f"outputs/{at}/parameters")
        call = Call(
            surface=pb.SURFACE_TENSORS,
            model=_reference(request.model_name, request.model_version),
            body=orjson.dumps({"parameters": parameters}),
            wants=wants_of(orjson.loads(wants) if isinstance(wants, str) else None),
            stream=False,
            tenant=key.id,
            tensors=given,
            outputs=[item.name for item in request.outputs],
        )
        opened = await self._inference.open(call)
        if opened.resolved.manifest.kind is not Kind.TENSORS:
            raise InvalidInput("model: takes no tensors", field="model")
        async with aclosing(opened.events) as events:  # type: ignore[type-var]
            async for event in events:
                if event.HasField("finished"):
                    manifest, finished = opened.resolved.manifest, event.finished
                    output_type = v2.ModelInferResponse.InferOutputTensor
                    return v2.ModelInferResponse(
                        model_name=f"{manifest.publisher}/{manifest.name}",
                        model_version=str(manifest.version),
                        id=request.id,
                        parameters={
                            name: v2.InferParameter(string_param=text) for name, text in receipt_parameters(finished, opened).items()
                        },
                        outputs=[output_type(name=t.name, datatype=t.datatype, shape=t.shape) for t in finished.tensors],
                        raw_output_contents=[t.data for t in finished.tensors],
                    )
        raise Unavailable("the answer ended before its end")


def _reference(name: str, version: str) -> str:
    return f"{name}@{version}" if version else name


def _parameter(value: v2.InferParameter) -> Any:
    which = value.WhichOneof("parameter_choice")
    return None if which is None else getattr(value, which)


def _tensor(item: Any, at: int, raw: bytes | None) -> Tensor:
    field = f"inputs/{at}"
    if not 0 < len(item.name) <= tensors.MAX_NAME:
        raise InvalidInput(f"{field}/name: 1 to {tensors.MAX_NAME} characters wanted", field=f"{field}/name")
    if item.datatype not in DATATYPES:
        raise InvalidInput(f"{field}/datatype: one of {', '.join(DATATYPES)}", field=f"{field}/datatype")
    if item.parameters:
        raise InvalidInput(f"{field}/parameters: none is honoured here", field=f"{field}/parameters")
    shape = tensors.shape_of(list(item.shape), f"{field}/shape")
    if raw is None:
        member = _CONTENTS.get(item.datatype)
        if member is None:
            raise InvalidInput(f"{field}/contents: {item.datatype} travels in raw_input_contents", field=f"{field}/contents")
        values = list(getattr(item.contents, member))
        if item.datatype == "BYTES":
            data = tensors.join_bytes(values)
        else:
            data = tensors.from_json(item.datatype, shape, values, f"{field}/contents")
        raw = data
    made = Tensor(item.name, item.datatype, shape, raw)
    tensors.check_size(made, field)
    return made
