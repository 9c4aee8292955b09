"""Money on a development chain: a dollar with EIP-3009, Permit2 and stand-ins for x402's two proxies, from artifacts, without a compiler.

Permit2 and the proxies lie where every client expects them; the node is told so (`anvil_setCode`). The dollar goes through the CREATE2
factory: its address is the same on every development chain, and doing all this twice changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from placet.core.evm.contracts import encode_call
from placet.core.keccak import keccak256
from placet.core.payment.eip712 import EXACT_PROXY, PERMIT2, UPTO_PROXY, permit2_separator
from placet.core.types import Address, address_from, hex0x
from placet.sdk.local.chain import ChainError, DevChain, artifact

TOKEN_NAME, TOKEN_VERSION, TOKEN_DECIMALS = "USD Coin", "2", 6
_FACTORY = address_from("0x4e59b44847b379578588920cA78FbF26c0B4956C")
_SALT = keccak256(b"placet.v1.TestUSDC")
_CODE = {PERMIT2: "Permit2", EXACT_PROXY: "ExactPermit2Proxy", UPTO_PROXY: "UptoPermit2Proxy"}


@dataclass(frozen=True, slots=True)
class PaymentContracts:
    """Where they are. The token's EIP-712 domain is `TOKEN_NAME`, `TOKEN_VERSION`."""

    token: Address
    permit2: Address = PERMIT2
    exact_proxy: Address = EXACT_PROXY
    upto_proxy: Address = UPTO_PROXY


async def deploy_payments(chain: DevChain, sender: Address) -> PaymentContracts:
    """Put everything on the chain; `sender` is one of the node's accounts.

    Raises:
        ChainError: the node is no anvil, or its Permit2 makes other digests than clients sign.
    """
    for address, name in _CODE.items():
        await chain.rpc.call("anvil_setCode", [hex0x(address), artifact(name)["deployedBytecode"]])
    separator = await chain.rpc.eth_call(PERMIT2, encode_call("DOMAIN_SEPARATOR()"))
    if separator != permit2_separator(await chain.rpc.chain_id()):
        raise ChainError("Permit2 has another domain separator than the one that clients sign for")
    code = bytes.fromhex(artifact("TestUSDC")["bytecode"].removeprefix("0x"))
    token = Address(keccak256(b"\xff" + _FACTORY + _SALT + keccak256(code))[12:])
    if await chain.rpc.call("eth_getCode", [hex0x(token), "latest"]) == "0x":
        await chain.send(sender, _FACTORY, _SALT + code)
    return PaymentContracts(token)


async def mint(chain: DevChain, sender: Address, token: Address, to: Address, amount: int) -> None:
    """Give somebody so many atomic units."""
    await chain.send(sender, token, encode_call("mint(address,uint256)", to, amount))


async def approve_permit2(chain: DevChain, owner: Address, token: Address, amount: int = 2**256 - 1) -> None:
    """Let Permit2 move an account's tokens; the account is one of the node's, or impersonated there."""
    await chain.send(owner, token, encode_call("approve(address,uint256)", PERMIT2, amount))


async def balance_of(chain: DevChain, token: Address, owner: Address) -> int:
    """An account's balance, in atomic units."""
    return int.from_bytes(await chain.rpc.eth_call(token, encode_call("balanceOf(address)", owner)), "big")
