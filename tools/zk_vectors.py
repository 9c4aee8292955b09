"""Write contracts/test/vectors/groth16.json: a proof of a small network, for the tests of verifiers. The keys are new each time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from placet.inference.proofs.network import network_of
from placet.inference.proofs.prover import Prover
from placet.verify.zk.field import ORDER
from placet.verify.zk.groth16 import Proof, VerifyingKey
from tests.support.zk import network_model

TARGET = Path(__file__).resolve().parents[1] / "contracts" / "test" / "vectors" / "groth16.json"


def main() -> None:
    """A network of 4 inputs, 8 hidden values and a sigmoid."""
    network = network_of(network_model((4, 8, 1), sigmoid=True))
    prover = Prover(network)
    pk, vk = prover.setup()
    prover.load(pk, vk)
    inputs = [int(value) for value in network.quantise(np.array([0.5, -1.25, 2.0, -0.125], dtype=np.float32))]
    proof, outputs = prover.prove(inputs)
    document = {
        "key": [str(word) for word in VerifyingKey.from_bytes(vk).words()],
        "numbers": [str(value % ORDER) for value in (*inputs, *outputs)],
        "proof": [str(word) for word in Proof.from_bytes(proof).words()],
        "vk": vk.hex(),
        "compressed": proof.hex(),
    }
    TARGET.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
