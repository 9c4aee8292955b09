"""`placet policy` as somebody uses it: files in, lines and exit status out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from placet.core.errors import PlacetError
from placet.sdk.cli.policy import policy

ROOT = Path(__file__).parents[3]
SPEND_LIMIT = ROOT / "policies" / "spend-limit"
SCREEN = ROOT / "policies" / "sanctions-screen"
ALICE, BOB = "0x" + "a1" * 20, "0x" + "b0" * 20
VAULT = "0x" + "aa" * 20


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp().parent / "placet-cache"))


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(policy, [str(item) for item in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def refused(*arguments: str | Path) -> str:
    result = CliRunner().invoke(policy, [str(item) for item in arguments])
    assert isinstance(result.exception, PlacetError), result.output
    return result.exception.message


def document(result: Result) -> Any:
    return json.loads(result.output)


@pytest.fixture
def intent(tmp_path: Path) -> Path:
    path = tmp_path / "intent.json"
    signature = "withdraw(uint256,address,address)"
    path.write_text(json.dumps({"from": ALICE, "to": VAULT, "functionSignature": signature, "arguments": ["100", BOB, ALICE]}))
    return path


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return shutil.copytree(SPEND_LIMIT, tmp_path / "pack")


def test_a_passing_pack_exits_with_0_and_names_file_and_line() -> None:
    lines = run("test", SPEND_LIMIT).output.splitlines()
    assert lines[-1] == "6 passed, 0 failed"
    assert lines[0].startswith(
        f"ok       {SPEND_LIMIT / 'spend_limit_test.rego'}:21: spend_limit_test.test_an_amount_at_the_limit_is_allowed"
    )
    assert document(run("test", SPEND_LIMIT, "--output", "json"))["counts"]["pass"] == 6


def test_a_failing_test_exits_with_1_and_says_where_it_stopped(pack: Path) -> None:
    with (pack / "spend_limit_test.rego").open("a") as file:
        file.write('\ntest_wrong if {\n\tdecide("1", alice, 0).allow\n\tdecide("1001", alice, 0).allow\n}\n')
    failed = next(line for line in run("test", pack, code=1).output.splitlines() if line.startswith("FAILED"))
    assert 'test_wrong: is undefined; stopped at line 49: decide("1001", alice, 0).allow' in failed


def test_what_operators_would_refuse_fails_the_tests(pack: Path) -> None:
    module = pack / "spend_limit.rego"
    module.write_text(module.read_text() + "\nwrong := http.send({})\n")
    output = run("test", pack, code=1).output
    assert "spend_limit.rego:" in output
    assert "there is no function http.send" in output


def test_a_recording_that_no_longer_holds_fails(tmp_path: Path) -> None:
    pack = shutil.copytree(SCREEN, tmp_path / "pack")
    recording = pack / "recordings" / "clean.json"
    changed = json.loads(recording.read_bytes())
    changed["decision"] = {"allow": False, "reasons": ["no"]}
    recording.write_text(json.dumps(changed))
    output = run("test", pack, code=1).output
    assert "recordings/clean.json: clean: decided allow, recorded deny" in output


def test_simulate_shows_the_decision_and_where_each_reason_comes_from(pack: Path, intent: Path) -> None:
    shown = document(run("simulate", pack, "--intent", intent, "--output", "json"))
    assert (shown["decision"], shown["ordering"]) == ("allow", "sender")
    params = intent.with_name("params.json")
    params.write_text(json.dumps({"max_amount": "99", "max_count": 1, "blocked": [BOB]}))
    result = run("simulate", pack, "--intent", intent, "--params", params, "--sequence", "1", "--output", "json")
    shown = document(result)
    assert shown["decision"] == "deny"
    assert {reason["message"]: [place["line"] for place in reason["places"]] for reason in shown["reasons"]} == {
        "amount 100 is above the limit of 99 a withdrawal": [16],
        f"receiver {BOB} is blocked": [20],
        "the sender has made its 1 withdrawals": [24],
    }
    assert shown["input"]["arguments"] == ["100", BOB, ALICE]
    assert shown["regoFuel"] > 0
    lines = run("simulate", pack, "--intent", intent, "--params", params, "--lines").output
    assert "spend_limit.rego:16  data.spend_limit.reasons" in lines
    assert "+ spend_limit.rego:17 " in lines


def test_a_simulation_is_the_same_every_time(pack: Path, intent: Path) -> None:
    once, again = (run("simulate", pack, "--intent", intent, "--timestamp", "1700000000", "--output", "json").output for _ in range(2))
    assert once == again


def test_without_a_node_the_chain_is_the_intents(pack: Path, intent: Path) -> None:
    intent.write_text(json.dumps({**json.loads(intent.read_bytes()), "chainId": 8453}))
    shown = document(run("simulate", pack, "--intent", intent, "--output", "json"))
    assert (shown["decision"], shown["task"]["chainId"], shown["task"]["policyClient"]) == ("allow", 8453, VAULT)


def test_a_call_that_the_policy_does_not_govern_is_denied_without_rego(pack: Path, intent: Path) -> None:
    intent.write_text(json.dumps({"from": ALICE, "to": VAULT, "functionSignature": "sweep(address)", "arguments": [ALICE]}))
    shown = document(run("simulate", pack, "--intent", intent, "--output", "json"))
    assert shown["decision"] == "deny"
    assert "no function that the policy governs" in shown["reasons"][0]["message"]


def test_simulate_replays_a_recording_and_can_expect_a_decision() -> None:
    recorded = SCREEN / "recordings" / "listed-receiver.json"
    shown = document(run("simulate", SCREEN, "--recorded", recorded, "--expect", "deny", "--output", "json"))
    assert shown["reasons"][0]["places"][0]["file"] == "sanctions_screen.rego"
    assert shown["policyData"][0]["transcript"][0][0] == "http.fetch"
    assert json.loads(shown["policyData"][0]["agreed"])["sanctions"]["entries"] == 3
    run("simulate", SCREEN, "--recorded", recorded, "--expect", "allow", code=1)


def test_a_recording_made_of_a_recording_is_the_same_file(tmp_path: Path) -> None:
    recorded, again = SCREEN / "recordings" / "clean.json", tmp_path / "again.json"
    run("simulate", SCREEN, "--recorded", recorded, "--record", again)
    assert again.read_bytes() == recorded.read_bytes()


def test_another_intent_than_recorded_asks_something_else_and_says_so(tmp_path: Path) -> None:
    recorded = json.loads((SCREEN / "recordings" / "clean.json").read_bytes())
    recorded["params"]["list_url"] = "http://localhost:1/other"
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(recorded))
    assert "entry 0: asked" in refused("simulate", SCREEN, "--recorded", changed)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--intent", "INTENT"], "say --live to fetch it now, or --recorded FILE"),
        (["--live"], "--intent FILE is needed"),
        (["--live", "--recorded", "RECORDED"], "exclude each other"),
    ],
)
def test_what_is_missing_is_named_with_its_fix(intent: Path, arguments: list[str], told: str) -> None:
    named = {"INTENT": str(intent), "RECORDED": str(SCREEN / "recordings" / "clean.json")}
    assert told in refused("simulate", SCREEN, *(named.get(item, item) for item in arguments))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"arguments": ["100"]}, "takes 3 arguments"),
        ({"arguments": ["1.5", BOB, ALICE]}, "arguments/0: an integer"),
        ({"to": "vault"}, "to"),
        ({"gas": 1}, "'gas' is not known"),
        ({"data": "0x"}, "one of data (0x hex) and arguments"),
    ],
)
def test_an_intent_that_is_none_is_refused_by_its_member(pack: Path, intent: Path, change: dict[str, Any], told: str) -> None:
    intent.write_text(json.dumps({**json.loads(intent.read_bytes()), **change}))
    assert told in refused("simulate", pack, "--intent", intent)


@pytest.mark.parametrize("language", ["javascript", "python", "rust"])
def test_init_makes_a_pack_whose_rego_tests_pass_once_it_is_built(tmp_path: Path, language: str) -> None:
    made = document(run("init", "my-feed", "--language", language, "--dir", tmp_path, "--output", "json"))
    folder = tmp_path / "my-feed"
    assert str(folder / "my_feed.rego") in made["files"]
    assert not [path for path in folder.rglob("*") if "@" in path.name or (path.is_file() and "@package@" in path.read_text())]
    assert "is not built: run `placet policy build" in refused("test", folder)
    assert "exists" in refused("init", "my-feed", "--dir", tmp_path)
    assert "lower-case words" in refused("init", "My Feed", "--dir", tmp_path)


def test_a_folder_that_is_no_pack_is_named(tmp_path: Path) -> None:
    assert refused("test", tmp_path) == f"{tmp_path} is no pack: it has no policy.toml (`placet policy init` makes one)"
    (tmp_path / "policy.toml").write_text('name = "x"\ncolour = "red"\n')
    assert "'colour' is not known; known are calls, description" in refused("test", tmp_path)


def test_publish_asks_who_pays(tmp_path: Path) -> None:
    deployments = tmp_path / "31337.json"
    deployments.write_text("{}")
    network: list[str | Path] = ["--object-store", "memory://", "--rpc", "http://127.0.0.1:9", "--deployments", deployments]
    told = refused("publish", SPEND_LIMIT, *network)
    assert "give --gateway" in told, "whose else could it be?"
    told = refused("publish", SPEND_LIMIT, *network, "--gateway", "http://127.0.0.1:9", "--api-key", "x")
    assert "who pays?" in told
