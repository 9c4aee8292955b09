"""API keys: what is stored, what is refused, and budgets that are each key's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from placet.core.errors import RateLimited, Unauthenticated
from placet.core.types import Hash32
from placet.gateway.keys import Authenticator, Bucket, new_key
from tests.support.gateway import Stage


class Watch:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def authenticator(stage: Stage, **budget: int) -> tuple[Authenticator, Watch, str, str]:
    """With one key: its header and its id."""
    watch = Watch()
    key, text = new_key("one", **budget)  # type: ignore[arg-type]
    await stage.gateway.store.add_key(key)
    return Authenticator(stage.gateway.store, watch), watch, f"Bearer {text}", key.id


async def test_only_a_hash_of_the_secret_is_kept(stage: Stage) -> None:
    key, text = new_key("one")
    await stage.gateway.store.add_key(key)
    stored = await stage.gateway.store.find_key(key.id)
    assert stored == key
    assert text.rsplit("_", 1)[1] not in repr(stored)
    assert len({new_key("x")[1] for _ in range(50)}) == 50


MALFORMED = [None, "", "Bearer", "Bearer ", "Bearer placet_", "Token x", "Bearer placet_0_0", "bearer\x00x", "Bearer " + "x" * 9999]


@pytest.mark.parametrize("header", MALFORMED, ids=range(len(MALFORMED)))
async def test_a_malformed_header_is_not_looked_up(stage: Stage, header: str | None) -> None:
    auth, *_ = await authenticator(stage)
    with pytest.raises(Unauthenticated, match="Authorization"):
        await auth.authenticate(header)


async def test_an_unknown_key_and_a_wrong_secret_read_the_same(stage: Stage) -> None:
    auth, _, header, _ = await authenticator(stage)
    unknown, wrong = "Bearer placet_" + "0" * 16 + "_" + "0" * 64, header[:-8] + "00000000"
    texts = set()
    for bad in (unknown, wrong):
        with pytest.raises(Unauthenticated) as caught:
            await auth.authenticate(bad)
        texts.add(caught.value.message)
    assert len(texts) == 1
    assert (await auth.authenticate(header)).name == "one"


async def test_a_disabled_key_is_refused_within_seconds(stage: Stage) -> None:
    auth, watch, header, key_id = await authenticator(stage)
    await auth.authenticate(header)
    assert await stage.gateway.store.disable_key(key_id)
    assert not await stage.gateway.store.disable_key("0" * 16)
    watch.now += 6
    with pytest.raises(Unauthenticated):
        await auth.authenticate(header)


async def test_requests_are_limited_a_key_and_come_back_with_time(stage: Stage) -> None:
    auth, watch, header, _ = await authenticator(stage, requests_per_s=5)
    other, text = new_key("other", requests_per_s=5)
    await stage.gateway.store.add_key(other)
    for _ in range(10):  # a burst of two seconds' worth
        await auth.authenticate(header)
    with pytest.raises(RateLimited) as caught:
        await auth.authenticate(header)
    assert caught.value.retryable
    assert caught.value.extra["limit"] == 5
    await auth.authenticate(f"Bearer {text}")  # another key's budget is untouched
    watch.now += 0.2
    await auth.authenticate(header)
    with pytest.raises(RateLimited):
        await auth.authenticate(header)


async def test_a_large_body_is_as_many_requests(stage: Stage) -> None:
    auth, _, header, _ = await authenticator(stage, requests_per_s=10)
    await auth.authenticate(header, 100 << 10)  # 7 of 20
    await auth.authenticate(header, 192 << 10)  # no more than a second's worth: it would never be taken
    for _ in range(3):
        await auth.authenticate(header)
    with pytest.raises(RateLimited):
        await auth.authenticate(header)


async def test_a_wrong_secret_spends_nothing_of_the_keys_budget(stage: Stage) -> None:
    auth, _, header, _ = await authenticator(stage, requests_per_s=2)
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            await auth.authenticate(header[:-8] + "00000000")
    await auth.authenticate(header)


async def test_cpu_is_a_budget_of_its_own(stage: Stage) -> None:
    auth, watch, header, _ = await authenticator(stage, cpu_ms_per_s=100)
    key = await auth.authenticate(header)
    with auth.simulating(key):
        with pytest.raises(RateLimited, match="one at a time"), auth.simulating(key):
            pass
        watch.now += 0.5
    for after, allowed in ((0.0, False), (2.0, False), (1.2, True)):  # 200 ms were there, 500 were used
        watch.now += after
        if allowed:
            with pytest.raises(ZeroDivisionError), auth.simulating(key):
                raise ZeroDivisionError
        else:
            with pytest.raises(RateLimited, match="CPU"), auth.simulating(key):
                pass
    await auth.authenticate(header)


def test_a_bucket_never_holds_more_than_two_seconds_worth() -> None:
    bucket = Bucket(10, now=0.0)
    assert bucket.take(20, 0.0)
    assert not bucket.take(1, 0.0)
    assert bucket.take(20, 1000.0)
    assert not bucket.take(1, 1000.0)
    assert bucket.take(1, 1000.1)


async def test_a_rate_limit_is_a_429_with_retry_after(stage: Stage) -> None:
    key = await stage.another_key(requests_per_s=1)
    statuses = [(await stage.gateway.request("GET", "/api/v1/tasks/0x00", key=key)).status for _ in range(3)]
    assert statuses == [422, 422, 429]
    answer = await stage.gateway.request("GET", "/api/v1/tasks/0x00", key=key)
    assert answer.body["code"] == "rate_limited"
    assert answer.headers["retry-after"] == "1"


async def test_28_one_key_cannot_have_operators_compile_all_day(stage: Stage) -> None:
    body = {"policyId": "0x" + "11" * 32, "bundleSha256": "0x" + "22" * 32}
    stage.gateway.intents._policies.announce = _admit_anything  # type: ignore[method-assign]
    statuses = [(await stage.gateway.request("POST", "/api/v1/policies", body)).status for _ in range(31)]
    assert statuses == [202] * 30 + [429]
    found, other = new_key("other")
    await stage.gateway.store.add_key(found)
    assert (await stage.gateway.request("POST", "/api/v1/policies", body, key=other)).status == 202


async def _admit_anything(policy_id: Hash32, bundle_sha256: Hash32, charge: Callable[[], None]) -> None:
    charge()


async def test_uploads_and_checks_have_budgets_of_their_own(stage: Stage) -> None:
    auth, watch, header, _ = await authenticator(stage)
    key = await auth.authenticate(header)
    auth.uploading(key, 31 << 30)
    with pytest.raises(RateLimited, match="32 GiB a day"):
        auth.uploading(key, 2 << 30)
    watch.now += 86_400
    auth.uploading(key, 32 << 30)
    for _ in range(60):
        auth.checking(key)
    with pytest.raises(RateLimited, match="120 models"):
        auth.checking(key)
    watch.now += 31
    auth.checking(key)


async def test_who_has_no_key_may_pay_and_is_limited_by_host(stage: Stage) -> None:
    auth, _, header, _ = await authenticator(stage)
    assert (await auth.authenticate_or_pay(header, "1.2.3.4")) is not None
    for text in (None, "Bearer none", "Basic x"):
        assert await auth.authenticate_or_pay(text, "1.2.3.4") is None
    with pytest.raises(Unauthenticated):
        await auth.authenticate_or_pay(header[:-8] + "00000000", "1.2.3.4")
    for _ in range(97):
        await auth.authenticate_or_pay(None, "1.2.3.4")
    with pytest.raises(RateLimited):
        await auth.authenticate_or_pay(None, "1.2.3.4")
    assert await auth.authenticate_or_pay(None, "1.2.3.5") is None
