"""Answers are JSON whatever a policy's parameters hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from placet.gateway.http import reply


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 10**77, [{"limit": 2**200, "name": "Zürich"}]])
def test_integers_of_any_size_are_answered(value: Any) -> None:
    answer = reply({"params": value}, 200)
    assert json.loads(bytes(answer.body)) == {"params": value}
    assert answer.headers["content-type"] == "application/json"
