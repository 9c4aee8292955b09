"""`placet intent`: ask for a decision on a call, and look at a task."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
import orjson

from placet.core.errors import InvalidInput
from placet.sdk.cli.common import connect, gateway_options, output_option, show


@click.group()
def intent() -> None:
    """Ask for decisions on transactions."""


@intent.command()
@click.argument("policy_client")
@click.argument("function")
@click.argument("arguments", nargs=-1)
@click.option("--from", "sender", required=True, help="Who acts.")
@click.option("--to", default=None, help="Target; default: the policy client itself.")
@click.option("--value", default="0", show_default=True, help="Wei.")
@click.option("--args", "args_json", default=None, help="Caller arguments of the policy, JSON.")
@click.option("--key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Sign the intent with this hex key.")
@click.option("--relay", is_flag=True, help="Have settlement submit it (needs --key-file).")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the answer here, for `placet verify`.")
@gateway_options
@output_option
def send(
    policy_client: str,
    function: str,
    arguments: tuple[str, ...],
    sender: str,
    to: str | None,
    value: str,
    args_json: str | None,
    key_file: Path | None,
    relay: bool,
    save: Path | None,
    gateway: str | None,
    api_key: str | None,
    output: str,
) -> None:
    """Send an intent: FUNCTION (for instance 'withdraw(uint256,address,address)') with ARGUMENTS on POLICY_CLIENT.

    Arrays and tuples are given as JSON.
    """
    if relay and key_file is None:
        raise InvalidInput("--relay needs --key-file: somebody else submits, so the sender must sign")
    call: dict[str, Any] = {
        "from": sender,
        "value": value,
        "functionSignature": function,
        "arguments": [_argument(item) for item in arguments],
    }
    if to is not None:
        call["to"] = to

    key = None if key_file is None else key_file.read_text().strip()

    async def run() -> dict[str, Any]:
        async with connect(gateway, api_key) as client:
            prepared = await client.prepare(policy_client, call)
            signature = None
            if key is not None:
                from eth_account import Account  # seconds to import, and only signing needs it
                from eth_account.messages import encode_typed_data

                message = encode_typed_data(full_message=prepared["typedData"])
                signature = "0x" + bytes(Account.sign_message(message, key).signature).hex()
            args = orjson.loads(args_json) if args_json else None
            answer = await client.submit(policy_client, prepared["intent"], signature=signature, args=args, relay=relay)
            return {**answer, "intent": prepared["intent"]}

    answer = asyncio.run(run())
    if save is not None:
        save.write_bytes(orjson.dumps(answer, option=orjson.OPT_INDENT_2))
    certificate = answer["attestation"]["certificate"]
    lines = [f"{answer['decision']}  task {answer['taskId']}"]
    lines += [f"  {item['message']}" for item in answer["reasons"]]
    lines += [f"certificate root {certificate['root']}, epoch {certificate['epoch']}; expires at {answer['expiresAt']}"]
    if answer["decision"] == "allow" and not relay:
        lines += [
            f"execute: cast send {answer['call']['to']} {answer['call']['data'][:42]}… --value {answer['call']['value']} --from {sender}"
        ]
    show(answer, output, lines)


def _argument(text: str) -> Any:
    return orjson.loads(text) if text[:1] in "[{" or text in ("true", "false") else text


@intent.command()
@click.argument("task_id")
@gateway_options
@output_option
def status(task_id: str, gateway: str | None, api_key: str | None, output: str) -> None:
    """Show a task: its stage, its decision, and what settlement says of it."""

    async def run() -> dict[str, Any]:
        async with connect(gateway, api_key) as client:
            return await client.task(task_id)

    task = asyncio.run(run())
    lines = [f"{task['stage']}  task {task['taskId']}"]
    result = task.get("result", {})
    if "decision" in result:
        lines += [f"decision: {result['decision']}", *(f"  {item['message']}" for item in result["reasons"])]
    if "error" in result:
        lines += [
            f"{result['error']}: {result['message']}",
            *(f"  {o['operator']}: {o['code']} {o['message']}" for o in result["operators"]),
        ]
    if "settlement" in task:
        settled = task["settlement"]
        lines += [f"settlement: {settled['status']} {settled.get('transactionHash') or ''} {settled.get('error') or ''}"]
    show(task, output, lines)
