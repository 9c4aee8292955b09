"""The process that makes keys and proofs: `python -I -m placet.inference.proofs.prover FOLDER MEMORY_BYTES`.

It reads one line of JSON a job from its input and answers with one line; files are named, never content. It keeps the keys of the last
model in memory, because reading them takes longer than a proof. Everything here is heavy and holds the interpreter's lock; nothing of it
runs in a service.

    {"do": "setup", "model": path, "pk": path, "vk": path}   → {"network": hex}
    {"do": "prove", "model": path, "pk": path, "vk": path, "key": name, "inputs": [integers]} → {"proof": hex, "outputs": [integers]}
    failure → {"refused": text} (the job's fault) or {"failed": text}

A proof is verified before it is given out.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np

from placet.core.errors import InvalidInput, VerificationFailed
from placet.inference.proofs.circuit import Circuit, Rows
from placet.inference.proofs.network import Network, network_of
from placet.verify.zk.field import ORDER
from placet.verify.zk.groth16 import Proof, VerifyingKey, check


class _System:
    """A circuit in the form that zksnake's Groth16 takes."""

    def __init__(self, circuit: Circuit) -> None:
        from zksnake.array import SparseArray

        def matrix(rows: Rows) -> Any:
            made = SparseArray([[]], circuit.rows, circuit.variables, ORDER)
            made.append([(row, variable, coefficient % ORDER) for row, variable, coefficient in rows.entries])
            return made

        self.n_public = circuit.public
        self.A, self.B, self.C = matrix(circuit.a), matrix(circuit.b), matrix(circuit.c)


class Prover:
    """One circuit with its keys."""

    def __init__(self, network: Network) -> None:
        from zksnake.groth16 import Groth16

        self.network = network
        self.circuit = Circuit(network)
        self._groth16 = Groth16(_System(self.circuit))

    def setup(self) -> tuple[bytes, bytes]:
        """New proving and verifying keys. What they were made from is not kept anywhere."""
        self._groth16.setup()
        return self._groth16.proving_key.to_bytes(), self._groth16.verifying_key.to_bytes()

    def load(self, pk: bytes, vk: bytes) -> None:
        """Take keys that were made before. Raises VerificationFailed: they are none, or for another circuit."""
        from zksnake.groth16 import ProvingKey

        self.key = VerifyingKey.from_bytes(vk)
        if len(self.key.ic) != self.circuit.public:
            raise VerificationFailed("the verifying key is for another circuit", field="vk")
        try:
            self._groth16.proving_key = ProvingKey.from_bytes(pk)
        except (AssertionError, ValueError, IndexError) as error:
            raise VerificationFailed(f"not a proving key ({type(error).__name__})", field="pk") from None

    def prove(self, inputs: list[int]) -> tuple[bytes, list[int]]:
        """A proof, verified, and the outputs.

        Raises:
            VerificationFailed: keys and circuit do not go together.
        """
        public, private = self.circuit.witness(np.array(inputs, dtype=np.int64))
        try:
            raw = bytes(self._groth16.prove(public, private).to_bytes())
        except (AssertionError, ValueError) as error:
            raise VerificationFailed(f"no proof came of it: {error}", field="pk") from None
        check(self.key, public[1:], Proof.from_bytes(raw))
        outputs, _ = self.network.run(np.array(inputs, dtype=np.int64))
        return raw, [int(value) for value in outputs]


def read_network(path: Path) -> Network:
    """The network of a model's file. Raises InvalidInput."""
    import onnx

    try:
        return network_of(onnx.load(str(path)))
    except InvalidInput:
        raise
    except Exception as error:  # noqa: BLE001 - protobuf's own errors
        raise InvalidInput(f"zkml: {path.name} is no ONNX file ({type(error).__name__})", field="model") from None


def _answer(job: dict[str, Any], held: dict[str, Prover]) -> dict[str, Any]:
    if job["do"] == "setup":
        held.clear()
        prover = Prover(read_network(Path(job["model"])))
        pk, vk = prover.setup()
        Path(job["pk"]).write_bytes(pk)
        Path(job["vk"]).write_bytes(vk)
        return {"network": prover.network.digest().hex()}
    if job["key"] not in held:
        held.clear()
        prover = Prover(read_network(Path(job["model"])))
        prover.load(Path(job["pk"]).read_bytes(), Path(job["vk"]).read_bytes())
        held[job["key"]] = prover
    proof, outputs = held[job["key"]].prove(job["inputs"])
    return {"proof": proof.hex(), "outputs": outputs}


def main() -> None:
    """Answer jobs until the input ends."""
    folder, memory_bytes = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["ZKSNAKE_PARALLEL_CPU"] = "1"  # otherwise it starts a process a core
    os.chdir(folder)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    held: dict[str, Prover] = {}
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line), held)
        except (InvalidInput, VerificationFailed) as error:
            answer = {"refused": error.message}
        except MemoryError:
            held.clear()
            answer = {"failed": f"more than {memory_bytes} bytes of memory are needed"}
        except Exception as error:  # noqa: BLE001 - the line says it; the next job may go better
            held.clear()
            answer = {"failed": f"{type(error).__name__}: {error}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
