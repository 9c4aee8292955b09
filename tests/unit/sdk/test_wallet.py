"""Keys, allow-lists and budgets by themselves."""

from __future__ import annotations

import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from eth_account import Account

from placet.core.errors import InvalidInput
from placet.core.types import Hash32, hex0x
from placet.sdk.budget import Budget, BudgetExceeded
from placet.sdk.wallet import KEY_VARIABLE, USDC, Asset, Wallet, amount_of
from tests.support.payment import TOKEN


def payment() -> Hash32:
    return Hash32(secrets.token_bytes(32))


def test_keys_come_from_bytes_files_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "0x" + "11" * 32
    address = Account.from_key(secret).address.lower()
    path = tmp_path / "wallet.key"
    path.write_text(secret + "\n")
    path.chmod(0o600)
    monkeypatch.setenv(KEY_VARIABLE, secret)
    for wallet in (Wallet(b"\x11" * 32), Wallet(secret), Wallet.from_file(path), Wallet.from_env()):
        assert hex0x(wallet.address) == address
        assert "1111" not in repr(wallet)
    made = Wallet.create(tmp_path / "new.key")
    assert Wallet.from_file(tmp_path / "new.key").address == made.address
    with pytest.raises(InvalidInput):
        Wallet.create(tmp_path / "new.key")
    path.chmod(0o644)
    with pytest.raises(InvalidInput, match="chmod 600"):
        Wallet.from_file(path)
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(InvalidInput, match=KEY_VARIABLE):
        Wallet.from_env()


@pytest.mark.parametrize("secret", ["", "zz" * 32, "11" * 31, "11" * 33, b"\0" * 32, b"\x11" * 16])
def test_what_is_no_key_is_refused_without_being_told(secret: str | bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        Wallet(secret)
    assert "1111" not in caught.value.message


def test_assets_are_named_in_one_line() -> None:
    assert Asset.parse("eip155:31337/" + hex0x(TOKEN)) == Asset("eip155:31337", TOKEN)
    assert Asset.parse("eip155:1/" + hex0x(TOKEN) + ":18").scaled(5) == 5
    assert USDC[0].scaled(1_000_000) == amount_of("1")
    for text in (
        "",
        "eip155:1",
        "1/" + hex0x(TOKEN),
        "eip155:1/0x12",
        "eip155:1/" + hex0x(TOKEN) + ":x",
        "eip155:1/" + hex0x(TOKEN) + ":19",
    ):
        with pytest.raises(InvalidInput):
            Asset.parse(text)


def test_a_budget_outlives_its_process_and_starts_anew_each_day(tmp_path: Path) -> None:
    now = [1_800_000_000.0]
    path = tmp_path / "state" / "budget.sqlite"

    def opened() -> Budget:
        return Budget(per_payment="1", per_day="2", total="5", path=path, clock=lambda: now[0])

    first = payment()
    opened().reserve(first, amount_of("1"))
    opened().reserve(payment(), amount_of("1"))
    with pytest.raises(BudgetExceeded) as caught:
        opened().reserve(payment(), 1)
    assert (caught.value.limit, opened().spent().today) == ("day", "2")
    now[0] += 86_400
    opened().charged(first, amount_of("0.25"))  # yesterday's: today has no more room for it
    assert (opened().spent().today, opened().spent().total) == ("0", "1.25")
    for _ in range(2):
        opened().reserve(payment(), amount_of("1"))
    now[0] += 86_400
    opened().reserve(payment(), amount_of("1"))
    with pytest.raises(BudgetExceeded) as caught:
        opened().reserve(payment(), amount_of("1"))
    assert caught.value.limit == "total"
    assert path.stat().st_mode & 0o077 == 0


def test_a_payment_costs_less_once_and_never_more() -> None:
    budget = Budget(per_payment=None)
    first, second = payment(), payment()
    for item in (first, second):
        budget.reserve(item, 100)
    for item, amount in ((first, 40), (first, 0), (payment(), 0), (second, 200)):
        budget.charged(item, amount)
    assert budget.spent().total == "0.00000000000000014"
    third = payment()
    budget.reserve(third, 100)
    budget.charged(third, -1)
    assert budget.spent().total == "0.00000000000000024"


def test_many_at_once_spend_no_more_than_there_is() -> None:
    budget = Budget(per_payment=None, total="1")

    def spend(_: int) -> bool:
        try:
            budget.reserve(payment(), amount_of("0.1"))
        except BudgetExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(spend, range(40))) == 10


SPEND = """
import secrets, sys
from pathlib import Path
from placet.sdk.budget import Budget, BudgetExceeded

budget, spent = Budget(per_payment=None, total="1", path=Path(sys.argv[1])), 0
for _ in range(10):
    try:
        budget.reserve(secrets.token_bytes(32), 10**17)
        spent += 1
    except BudgetExceeded:
        pass
print(spent)
"""


def test_many_processes_share_a_budget(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SPEND, str(tmp_path / "budget.sqlite")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert sum(map(int, said)) == 10
