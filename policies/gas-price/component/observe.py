"""The gas price that a JSON endpoint states, in wei.

Arguments: `url`; `body` (empty: GET, else POST as JSON); `pointer`, where the price stands in the answer (RFC 6901). A price is an
integer, a decimal string or a 0x hex string; a fraction is refused, because nobody can say what was meant by it.
"""

import json

import wit_world
from componentize_py_types import Err
from wit_world.imports import http

MAX_WEI = 1 << 128
MAX_DEPTH = 64


def fetched(url: str, body: str) -> str:
    headers = [http.Header("accept", "application/json")]
    if body:
        request = http.Request(http.Method.POST, url, [*headers, http.Header("content-type", "application/json")], body)
    else:
        request = http.Request(http.Method.GET, url, headers, None)
    try:
        response = http.fetch(request)
    except Err as error:
        kind = type(error.value).__name__.rpartition("_")[2].lower()
        raise Err(f"the price cannot be fetched: {kind} {getattr(error.value, 'value', '')}".rstrip()) from None
    if response.status != 200:
        raise Err(f"the price's server answered {response.status}")
    return response.body


def parsed(text: str) -> object:
    # The parser recurses, and where the stack ends is the machine's: nesting is refused before.
    depth = 0
    for character in text:
        if character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise Err("the answer is nested too deeply")
        elif character in "]}":
            depth -= 1
    try:
        return json.loads(text)
    except ValueError:
        raise Err("the answer is not JSON") from None


def at(document: object, pointer: str) -> object:
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict) and name in document:
            document = document[name]
        elif isinstance(document, list) and name.isdecimal() and int(name) < len(document):
            document = document[int(name)]
        else:
            raise Err(f"the answer has nothing at {pointer}")
    return document


def wei(value: object) -> int:
    price = -1
    if isinstance(value, int) and not isinstance(value, bool):
        price = value
    elif isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 40:
        price = int(value)
    elif isinstance(value, str) and value.startswith("0x") and 2 < len(value) < 35 and value[2:].isalnum():
        try:
            price = int(value[2:], 16)
        except ValueError:
            price = -1
    if not 0 <= price < MAX_WEI:
        raise Err(f"{json.dumps(value)[:60]} is no price in wei")
    return price


class WitWorld(wit_world.WitWorld):
    def run(self, context: object, intent: str, params: str, arguments: str) -> str:
        given = json.loads(arguments)
        document = parsed(fetched(given["url"], given["body"]))
        return json.dumps({"gas_price": {"wei": wei(at(document, given["pointer"]))}})
