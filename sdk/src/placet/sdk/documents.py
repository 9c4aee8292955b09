"""JSON documents of attestations and operator sets, as the gateway gives them and `placet verify` reads them."""

from __future__ import annotations

from typing import Any

from placet.core.errors import InvalidInput
from placet.core.types import Certificate, Intent, Leaf, Operator, OperatorSet, address_from, hash_from, hex0x
from placet.verify import Attestation


def _bytes(value: Any, field: str) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x"):
        raise InvalidInput(f"{field}: 0x hex wanted", field=field)
    try:
        return bytes.fromhex(value[2:])
    except ValueError:
        raise InvalidInput(f"{field}: 0x hex wanted", field=field) from None


def attestation_of(document: Any) -> Attestation:
    """An attestation from its JSON. Raises InvalidInput naming the member."""
    try:
        leaf, certificate = document["leaf"], document["certificate"]
        return Attestation(
            chain_id=int(document["chainId"]),
            validator=address_from(document["validator"], field="validator"),
            leaf=Leaf(
                task_id=hash_from(leaf["taskId"], field="leaf.taskId"),
                policy_client=address_from(leaf["policyClient"], field="leaf.policyClient"),
                policy_id=hash_from(leaf["policyId"], field="leaf.policyId"),
                intent_hash=hash_from(leaf["intentHash"], field="leaf.intentHash"),
                sequence=int(leaf["sequence"]),
                allow=_boolean(leaf["allow"], "leaf.allow"),
                output=hash_from(leaf["output"], field="leaf.output"),
                evidence=hash_from(leaf["evidence"], field="leaf.evidence"),
                expiration=int(leaf["expiration"]),
            ),
            index=int(document["index"]),
            proof=tuple(hash_from(item, field="proof") for item in document["proof"]),
            certificate=Certificate(
                hash_from(certificate["root"], field="certificate.root"),
                int(certificate["count"]),
                int(certificate["epoch"]),
                int(certificate["timestamp"]),
            ),
            signers=_bytes(document["signers"], "signers"),
            aggregate_signature=_bytes(document["aggregateSignature"], "aggregateSignature"),
        )
    except KeyError as error:
        raise InvalidInput(f"not an attestation: member {error} is missing", field="attestation") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"not an attestation: {error}", field="attestation") from None


def _boolean(value: Any, field: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"{field}: true or false wanted", field=field)
    return value


def intent_of(document: Any) -> Intent:
    """An intent from its JSON. Raises InvalidInput naming the member."""
    try:
        return Intent(
            address_from(document["from"], field="intent.from"),
            address_from(document["to"], field="intent.to"),
            int(document["value"]),
            _bytes(document["data"], "intent.data"),
            int(document["chainId"]),
            str(document["functionSignature"]),
            int(document["nonce"]),
            int(document["deadline"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"intent: {type(error).__name__}: {error}", field="intent") from None


def operator_set_json(operators: OperatorSet) -> dict[str, Any]:
    """An operator set as it is written into a deployments file."""
    return {
        "epoch": operators.epoch,
        "vacantStake": str(operators.vacant_stake),
        "operators": [
            {
                "operator": hex0x(item.address),
                "keyId": hex0x(item.key_id),
                "blsKey": hex0x(item.bls_key),
                "busKey": hex0x(item.bus_key),
                "stake": str(item.stake),
            }
            for item in operators.operators
        ],
    }


def operator_set_of(document: Any) -> OperatorSet:
    """An operator set from its JSON. Raises InvalidInput."""
    try:
        operators = tuple(
            Operator(
                address_from(item["operator"], field="operators.operator"),
                hash_from(item["keyId"], field="operators.keyId"),
                _bytes(item["blsKey"], "operators.blsKey"),
                _bytes(item["busKey"], "operators.busKey"),
                int(item["stake"]),
            )
            for item in document["operators"]
        )
        return OperatorSet(int(document["epoch"]), operators, int(document["vacantStake"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"operators: {type(error).__name__}: {error}", field="operators") from None
