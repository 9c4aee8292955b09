"""PolicyData components: what they can do, how hostile ones end, what is recorded and replayed.

Components are written as WebAssembly text (`kit`): no toolchain is needed, and a hostile one can be wrong in ways that no
compiler lets through.
"""

import base64
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from wasmtime import wat2wasm
from wasmtime.component import Component

from placet.sandbox import admission
from placet.sandbox.admission import AdmissionLimits, ArtifactCache, ComponentRejected, component_engine, runtime_id
from placet.sandbox.chain import ChainFunction, ChainRefused, ChainUnavailable
from placet.sandbox.errors import SandboxError, SandboxUnavailable
from placet.sandbox.fetch import FetchDenied, FetchError, FetchFailed, FetchTimeout, FetchTooLarge, HttpRequest, HttpResponse
from placet.sandbox.manifest import NEWTON_WORLD, PLACET_WORLD, Manifest, World
from placet.sandbox.policydata import ComponentEngine, ComponentFailed, ComponentRun, LiveHost, ReplayDiverged, RunRequest
from placet.sandbox.transcript import Redactor, Transcript
from placet.sandbox.worlds import describe_function

KEY = bytes(32)
Kit = Any


@dataclass
class FakeHost:
    """A host whose answers are written down."""

    answers: list[HttpResponse | FetchError] = field(default_factory=list)
    granted: Mapping[str, str] = field(default_factory=dict)
    chain_answer: str | Exception = "0x05"
    requests: list[HttpRequest] = field(default_factory=list)
    delay_s: float = 0

    def fetch(self, request: HttpRequest, deadline: float) -> HttpResponse:
        self.requests.append(request)
        time.sleep(self.delay_s)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def secrets(self) -> Mapping[str, str]:
        return self.granted

    def chain(self, function: ChainFunction, address: str, data: str) -> str:
        if isinstance(self.chain_answer, Exception):
            raise self.chain_answer
        return self.chain_answer


def ok(body: bytes, status: int = 200) -> HttpResponse:
    return HttpResponse(status, (("content-type", "application/json"), ("date", "today")), body)


def run(
    components: ComponentEngine,
    component: bytes,
    manifest: Manifest,
    request: RunRequest,
    host: Any = None,
    **options: Any,
) -> ComponentRun:
    admitted = components.admit(component, manifest)
    return components.run(admitted.sha256, manifest, request, host or LiveHost(), **options)


def failure(*arguments: Any, **options: Any) -> ComponentFailed:
    with pytest.raises(ComponentFailed) as failed:
        run(*arguments, **options)
    return failed.value


ANSWER = "(call $answer (i32.const 100) (i32.const 7))", {100: '{"v":1}'}

# Fetches the URL at 100 (its length is given) and answers with the body; an error with the text at 600.
URL = "https://api.test/a"


def fetching(kit: Kit, url: str = URL, *, method: int = 0) -> bytes:
    body = f"""
      (call $fetch (i32.const {method}) (i32.const 100) (i32.const {len(url)}) (i32.const 0) (i32.const 0)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 200))
      (if (result i32) (i32.load8_u (i32.const 200))
        (then
          (i32.store (i32.const 16) (i32.const 1))
          (i32.store (i32.const 20) (i32.const 600))
          (i32.store (i32.const 24) (i32.const 6))
          (i32.const 16))
        (else (call $answer (i32.load (i32.const 220)) (i32.load (i32.const 224)))))"""
    component: bytes = kit.placet(body, {100: url, 600: "failed"}, host=True)
    return component


def test_a_component_gets_its_arguments_and_its_answer_is_checked(components: ComponentEngine, kit: Kit) -> None:
    arguments = {"type": "object", "properties": {"v": {"type": "integer"}}}
    echo = kit.placet("(call $answer (local.get 11) (local.get 12))")
    result = run(components, echo, kit.parsed(arguments=arguments), kit.request('{"v": 12345678901234567890123}'))
    assert result.output_json == '{"v": 12345678901234567890123}'
    assert result.pure
    assert result.transcript.entries == ()
    for position, name in ((7, "intent"), (9, "params")):
        echo = kit.placet(f"(call $answer (local.get {position}) (local.get {position + 1}))")
        assert run(components, echo, kit.parsed(), kit.request(**{name: '{"v":"x"}'})).output_json == '{"v":"x"}'


def test_the_context_is_the_task_s(components: ComponentEngine, kit: Kit) -> None:
    check = kit.placet(
        """(if (i64.ne (local.get 0) (i64.const 1700000000)) (then unreachable))
           (if (i64.ne (local.get 1) (i64.const 19)) (then unreachable))
           (if (i32.ne (local.get 3) (i32.const 66)) (then unreachable))
           (if (i64.ne (local.get 4) (i64.const 31337)) (then unreachable))
           (if (i64.ne (call $now) (i64.const 1700000000000)) (then unreachable))
           (call $answer (i32.const 100) (i32.const 7))""",
        {100: '{"v":1}'},
        host=True,
    )
    result = run(components, check, kit.parsed(), kit.request())
    assert result.pure  # reading the clock asks nothing of the outside


def test_runs_are_deterministic_also_in_their_fuel(components: ComponentEngine, kit: Kit) -> None:
    component = fetching(kit)
    seen = {
        (result.output_json, result.fuel, result.transcript.sha256)
        for _ in range(200)
        for result in [run(components, component, kit.parsed(), kit.request(), FakeHost([ok(b'{"v":[1,2,3]}')]))]
    }
    assert len(seen) == 1


HOSTILE = {
    "an endless loop": ("(loop $l (br $l)) (i32.const 0)", {}, {"fuel"}),
    "unreachable": ("unreachable", {}, {"trap"}),
    "a discriminant that is none": ("(i32.store (i32.const 16) (i32.const 7)) (i32.const 16)", {}, {"trap"}),
    "an answer beyond memory": ("(call $answer (i32.const 100) (i32.const 999999999))", {}, {"trap"}),
    "an answer at an odd place": ("(i32.const 17)", {}, {"trap"}),
    "an answer outside memory": ("(i32.const 262140)", {}, {"trap"}),
    "text that is not UTF-8": ("(i32.store8 (i32.const 100) (i32.const 255)) (call $answer (i32.const 100) (i32.const 1))", {}, {"trap"}),
    "no JSON": ("(call $answer (i32.const 100) (i32.const 4))", {100: "nope"}, {"output"}),
    "a list": ("(call $answer (i32.const 100) (i32.const 2))", {100: "[]"}, {"output"}),
    "an unknown key": ("(call $answer (i32.const 100) (i32.const 7))", {100: '{"w":1}'}, {"output"}),
    "a fraction": ("(call $answer (i32.const 100) (i32.const 9))", {100: '{"v":1.5}'}, {"output"}),
    "1e400000000": ("(call $answer (i32.const 100) (i32.const 17))", {100: '{"v":1e400000000}'}, {"output"}),
    "duplicate keys": ("(call $answer (i32.const 100) (i32.const 13))", {100: '{"v":1,"v":2}'}, {"output"}),
    "200 kB of output": ("(call $answer (i32.const 0) (i32.const 200000))", {}, {"output"}),
    "division by zero": ("(i32.div_u (i32.const 1) (i32.const 0))", {}, {"trap"}),
    "memory beyond the limit": (
        """(if (i32.ne (memory.grow (i32.const 65000)) (i32.const -1)) (then (loop $l (br $l))))
           (if (i32.ne (memory.grow (i32.const 2000)) (i32.const -1)) (then (loop $l (br $l)))) unreachable""",
        {},
        {"trap"},
    ),
    "an error of its own": (
        """(i32.store (i32.const 16) (i32.const 1)) (i32.store (i32.const 20) (i32.const 100))
           (i32.store (i32.const 24) (i32.const 4)) (i32.const 16)""",
        {100: "nope"},
        {"error"},
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_component_fails_by_itself_and_the_next_run_is_unharmed(components: ComponentEngine, kit: Kit, name: str) -> None:
    body, data, kinds = HOSTILE[name]
    failed = failure(components, kit.placet(body, data), kit.parsed(limits={"fuel": 10**8}), kit.request())
    assert failed.kind in kinds
    assert failed.pure
    assert run(components, kit.placet(*ANSWER), kit.parsed(), kit.request()).output_json == '{"v":1}'


def test_18_a_deadline_and_the_host_s_stack_make_an_operator_abstain(components: ComponentEngine, kit: Kit) -> None:
    """Both depend on this machine, so neither may be signed as a deny."""
    started = time.monotonic()
    slow = kit.parsed(limits={"fuel": 5 * 10**10, "deadline_ms": 150})
    with pytest.raises(SandboxUnavailable, match="150 ms"):
        run(components, kit.placet("(loop $l (br $l)) (i32.const 0)"), slow, kit.request())
    assert time.monotonic() - started < 2
    with pytest.raises(SandboxUnavailable, match="deeply"):
        run(components, kit.placet("(call $r) (i32.const 0)", more="(func $r (call $r))"), kit.parsed(), kit.request())
    with pytest.raises(SandboxUnavailable, match="not admitted here"):
        components.run("00" * 32, kit.parsed(), kit.request(), LiveHost())


def test_18_arguments_that_do_not_fit_the_manifest_are_a_pure_failure(components: ComponentEngine, kit: Kit) -> None:
    manifest = kit.parsed(arguments={"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]})
    for arguments in ("{}", '{"a": 1}', '{"a": "x", "b": 1}', "nonsense", '{"a": "' + "x" * 300_000 + '"}'):
        assert failure(components, kit.placet(*ANSWER), manifest, kit.request(arguments)).pure


def importing(interface: str, items: str) -> bytes:
    return bytes(wat2wasm(f'(component (import "{interface}" (instance {items})))'))


CLOCK = "placet:policydata/clock@1.0.0"


@pytest.mark.parametrize(
    ("component", "reason"),
    [
        (b"nonsense", "not WebAssembly"),
        (b"\0asm\1\0\0\0", "does not compile"),
        (wat2wasm("(module (memory 1 1 shared))"), "does not compile"),
        (wat2wasm("(component)"), "does not export run"),
        (importing("wasi:cli/environment@0.2.0", '(export "get-environment" (func (result (list string))))'), "wasi:cli"),
        (importing(CLOCK, '(export "now-millis" (func (result string)))'), "now-millis"),
        (importing(CLOCK, '(export "sleep" (func (param "ms" u64)))'), "sleep"),
        (importing("placet:policydata/clock@1.0.1", '(export "now-millis" (func (result u64)))'), "clock@1.0.1"),
        (importing(CLOCK, '(export "r" (type (sub resource)))'), "#r"),
        (wat2wasm(f'(component (import "{CLOCK}" (func (result u64))))'), "interface"),
    ],
)
def test_a_component_of_another_world_is_rejected(components: ComponentEngine, kit: Kit, component: bytes, reason: str) -> None:
    with pytest.raises(ComponentRejected, match=reason):
        components.admit(bytes(component), kit.parsed())


def test_a_component_of_one_world_is_rejected_in_the_other(components: ComponentEngine, kit: Kit) -> None:
    with pytest.raises(ComponentRejected, match="run is"):
        components.admit(kit.placet(*ANSWER), kit.parsed(NEWTON_WORLD))
    with pytest.raises(ComponentRejected, match="run is"):
        components.admit(kit.newton("(i32.const 0)"), kit.parsed())


def test_a_component_over_32_mb_is_rejected_unread(components: ComponentEngine, kit: Kit) -> None:
    with pytest.raises(ComponentRejected, match="bytes"):
        components.admit(b"\0" * ((32 << 20) + 1), kit.parsed())


def test_29_a_compile_bomb_is_not_admitted_here_yet_and_is_never_called_refused(tmp_path: Path, kit: Kit) -> None:
    depth = 40_000  # 120 kB that compile for some 20 CPU seconds
    bomb = kit.placet("(i32.const 0)", more="(func " + "loop " * depth + "end " * depth + ")")
    cache = ArtifactCache(tmp_path / "cache")
    started = time.monotonic()
    with pytest.raises(SandboxUnavailable, match="not admitted here yet"):
        cache.admit(bomb, kit.parsed(), AdmissionLimits(cpu_s=1))
    assert time.monotonic() - started < 10
    with pytest.raises(SandboxUnavailable, match="not admitted here yet"):
        cache.admit(kit.placet(*ANSWER), kit.parsed(), AdmissionLimits(wall_s=0.001))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key"]


def test_artefacts_are_private_and_checked_before_they_are_loaded(tmp_path: Path, kit: Kit) -> None:
    cache = ArtifactCache(tmp_path / "cache")
    admitted = cache.admit(kit.placet(*ANSWER), kit.parsed())
    engine = component_engine()
    cache.load(engine, admitted.sha256, PLACET_WORLD)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    (artifact,) = (tmp_path / "cache").glob("*.cwasm")
    assert artifact.stat().st_mode & 0o777 == 0o600
    content = bytearray(artifact.read_bytes())
    content[len(content) // 2] ^= 1
    artifact.write_bytes(content)
    with pytest.raises(SandboxUnavailable, match="not admitted here"):
        cache.load(engine, admitted.sha256, PLACET_WORLD)
    # It is compiled anew, and another process of this user reads what this one wrote.
    assert cache.admit(kit.placet(*ANSWER), kit.parsed()) == admitted
    ArtifactCache(tmp_path / "cache").load(engine, admitted.sha256, PLACET_WORLD)
    # Another component's artefact under this one's name is noticed as well.
    other = cache.admit(kit.placet("unreachable"), kit.parsed())
    os.replace(next((tmp_path / "cache").glob(f"{other.sha256}*.cwasm")), artifact)
    with pytest.raises(SandboxUnavailable):
        cache.load(engine, admitted.sha256, PLACET_WORLD)


def test_a_cache_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(SandboxUnavailable, match="0700"):
        ArtifactCache(folder)


def test_17_the_runtime_id_names_everything_that_may_differ_between_honest_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    before = runtime_id()
    assert len(before) == 64
    monkeypatch.setitem(admission.SETTINGS, "max_wasm_stack", 1 << 20)
    assert runtime_id() != before
    monkeypatch.undo()
    monkeypatch.setattr(admission, "version", lambda _: "51.0.0")
    assert runtime_id() != before


# Host calls.


def test_a_fetch_is_made_as_asked_and_recorded(components: ComponentEngine, kit: Kit) -> None:
    host = FakeHost([ok(b'{"v":5}')])
    result = run(components, fetching(kit), kit.parsed(), kit.request(), host)
    assert host.requests == [HttpRequest("GET", URL)]
    assert result.output_json == '{"v":5}'
    assert not result.pure
    (entry,) = result.transcript.entries
    assert entry.function == "http.fetch"
    assert entry.request == ["GET", URL, [], None]
    assert entry.answer[:2] == ["ok", 200]


@pytest.mark.parametrize("error", [FetchTimeout("slow"), FetchFailed("broken"), FetchTooLarge(5)])
def test_18_a_component_that_gives_up_after_a_failed_fetch_did_not_fail_by_itself(
    components: ComponentEngine, kit: Kit, error: FetchError
) -> None:
    with pytest.raises(SandboxUnavailable, match=str(error)):
        run(components, fetching(kit), kit.parsed(), kit.request(), FakeHost([error]))


def test_18_a_refused_request_is_the_component_s_own_failure(components: ComponentEngine, kit: Kit) -> None:
    failed = failure(components, fetching(kit), kit.parsed(), kit.request(), FakeHost([FetchDenied("host")]))
    assert failed.kind == "error"
    assert not failed.pure
    assert len(failed.transcript.entries) == 1


def test_18_a_server_s_bad_answer_fails_this_observation_and_is_not_pure(components: ComponentEngine, kit: Kit) -> None:
    failed = failure(components, fetching(kit), kit.parsed(), kit.request(), FakeHost([ok(b"<html>")]))
    assert (failed.kind, failed.pure) == ("output", False)


def test_a_host_that_breaks_is_this_machine_s_trouble(components: ComponentEngine, kit: Kit) -> None:
    with pytest.raises(SandboxUnavailable, match="IndexError"):
        run(components, fetching(kit), kit.parsed(), kit.request(), FakeHost([]))


def test_the_number_of_fetches_is_limited(components: ComponentEngine, kit: Kit) -> None:
    manifest = kit.parsed(limits={"fetches": 0})
    failed = failure(components, fetching(kit), manifest, kit.request(), FakeHost([ok(b"{}")]))
    assert "more than 0 fetch calls" in failed.message


def test_a_fetch_that_outlives_the_deadline_ends_the_run(components: ComponentEngine, kit: Kit) -> None:
    loop = fetching(kit)
    host = FakeHost([ok(b'{"v":1}')], delay_s=0.4)
    with pytest.raises(SandboxUnavailable, match="100 ms"):
        run(components, loop, kit.parsed(limits={"deadline_ms": 100}), kit.request(), host)


SECRET = "s3cr3t/va+lue"


def secret_and_fetch(kit: Kit) -> bytes:
    """Puts the secret `k` behind the URL and fetches that; answers with the body."""
    body = f"""
      (local $length i32)
      (call $secret (i32.const 90) (i32.const 1) (i32.const 300))
      (if (i32.eqz (i32.load8_u (i32.const 300))) (then unreachable))
      (local.set $length (i32.load (i32.const 308)))
      (memory.copy (i32.const {100 + len(URL)}) (i32.load (i32.const 304)) (local.get $length))
      (call $fetch (i32.const 0) (i32.const 100) (i32.add (i32.const {len(URL)}) (local.get $length)) (i32.const 0) (i32.const 0)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 200))
      (call $answer (i32.load (i32.const 220)) (i32.load (i32.const 224)))"""
    component: bytes = kit.placet(body, {90: "k", 100: URL}, host=True)
    return component


def test_secrets_are_given_by_name_and_never_recorded(components: ComponentEngine, kit: Kit) -> None:
    manifest = kit.parsed(secrets=["k"])
    host = FakeHost([ok(f'{{"v":5,"echo":"{SECRET}"}}'.encode())], granted={"k": SECRET, "other": "not for this one"})
    manifest = replace(
        manifest, output=kit.parsed(output={"type": "object", "properties": {"v": {"type": "json"}, "echo": {"type": "json"}}}).output
    )
    with pytest.raises(ComponentFailed, match="secret"):  # the server echoes it into the answer
        run(components, secret_and_fetch(kit), manifest, kit.request(), host, digest_key=KEY)
    host = FakeHost([ok(b'{"v":5}')], granted=host.granted)
    result = run(components, secret_and_fetch(kit), manifest, kit.request(), host, digest_key=KEY)
    assert host.requests[0].url == URL + SECRET
    text = result.transcript.to_json()
    assert SECRET not in text
    assert "hmac-sha256:" in text
    again = FakeHost([ok(b'{"v":5}')], granted=host.granted)
    other_key = run(components, secret_and_fetch(kit), manifest, kit.request(), again, digest_key=b"k" * 32)
    assert other_key.transcript.sha256 != result.transcript.sha256
    with pytest.raises(ValueError, match="16 bytes"):
        run(components, secret_and_fetch(kit), manifest, kit.request(), host)


def test_a_secret_is_found_in_its_usual_encodings() -> None:
    redactor = Redactor({"k": SECRET}, KEY)
    for form in (SECRET, "s3cr3t%2Fva%2Blue", base64.b64encode(SECRET.encode()).decode(), SECRET.encode().hex(), json.dumps(SECRET)):
        redacted = redactor.redact({"a": ["x " + form + " y"]})
        assert form.strip('"').rstrip("=") not in json.dumps(redacted)
        assert redactor.leaks(form)
    assert redactor.redact({"a": [1, None, "plain"]}) == {"a": [1, None, "plain"]}
    with pytest.raises(ValueError, match="fewer than 8"):
        Redactor({"k": "short"}, KEY)


def test_chain_answers_reach_the_component(components: ComponentEngine, kit: Kit) -> None:
    address, data = "0x" + "22" * 20, "0x1234"
    body = """
      (call $call (i32.const 100) (i32.const 42) (i32.const 160) (i32.const 6) (i32.const 300))
      (if (i32.load8_u (i32.const 300)) (then unreachable))
      (if (i32.ne (i32.load (i32.const 308)) (i32.const 4)) (then unreachable))
      (call $answer (i32.const 400) (i32.const 7))"""
    component = kit.placet(body, {100: address, 160: data, 400: '{"v":1}'}, host=True)
    result = run(components, component, kit.parsed(), kit.request(), FakeHost())
    assert result.transcript.entries[0].request == [address, data]
    # A revert is the chain's answer, the same everywhere; a node that does not answer is not.
    assert failure(components, component, kit.parsed(), kit.request(), FakeHost(chain_answer=ChainRefused("reverted"))).kind == "trap"
    with pytest.raises(SandboxUnavailable, match="no node"):
        run(components, component, kit.parsed(), kit.request(), LiveHost())
    with pytest.raises(SandboxUnavailable, match="down"):
        run(components, component, kit.parsed(), kit.request(), FakeHost(chain_answer=ChainUnavailable("down")))


# Replay.


class NoHost(FakeHost):
    def fetch(self, request: HttpRequest, deadline: float) -> HttpResponse:
        raise AssertionError("a replay asks nobody")


def test_a_transcript_replays_to_the_same_output_and_fuel(components: ComponentEngine, kit: Kit) -> None:
    manifest = kit.parsed(secrets=["k"])
    host = FakeHost([ok('{"v":"é"}'.encode())], granted={"k": SECRET})
    result = run(components, secret_and_fetch(kit), manifest, kit.request(), host, digest_key=KEY)
    transcript = Transcript.from_json(result.transcript.to_json())
    assert transcript == result.transcript
    again = run(components, secret_and_fetch(kit), manifest, kit.request(), NoHost(), replay=transcript)
    assert again.output_json == result.output_json
    assert again.transcript.sha256 == result.transcript.sha256
    plain = run(components, fetching(kit), kit.parsed(), kit.request(), FakeHost([ok(b'{"v":5}')]))
    replayed = run(components, fetching(kit), kit.parsed(), kit.request(), NoHost(), replay=plain.transcript)
    assert (replayed.output_json, replayed.fuel) == (plain.output_json, plain.fuel)


def test_a_replay_refuses_the_first_divergence(components: ComponentEngine, kit: Kit) -> None:
    plain = run(components, fetching(kit), kit.parsed(), kit.request(), FakeHost([ok(b'{"v":5}')]))
    (entry,) = plain.transcript.entries
    forged = Transcript((replace(entry, request=["GET", "https://api.test/b", [], None]),))
    longer = Transcript((entry, entry))
    for transcript, position in ((forged, 0), (Transcript(), 0), (longer, 1)):
        with pytest.raises(ReplayDiverged) as diverged:
            run(components, fetching(kit), kit.parsed(), kit.request(), NoHost(), replay=transcript)
        assert diverged.value.position == position
    with pytest.raises(ReplayDiverged):
        run(components, fetching(kit, method=1), kit.parsed(), kit.request(), NoHost(), replay=plain.transcript)


def test_a_failed_fetch_replays_as_a_failed_fetch(components: ComponentEngine, kit: Kit) -> None:
    failed = failure(components, fetching(kit), kit.parsed(), kit.request(), FakeHost([FetchDenied("host")]))
    again = failure(components, fetching(kit), kit.parsed(), kit.request(), NoHost(), replay=failed.transcript)
    assert (again.kind, again.message, again.fuel) == (failed.kind, failed.message, failed.fuel)


# Newton's world.

NEWTON_ARGUMENTS = {"type": "object", "properties": {"v": {"type": "json"}}}


def test_27_a_newton_component_gets_its_arguments_only_and_may_answer_fractions(components: ComponentEngine, kit: Kit) -> None:
    manifest = kit.parsed(NEWTON_WORLD, arguments=NEWTON_ARGUMENTS)
    echo = kit.newton("(call $answer (local.get 0) (local.get 1))")
    assert run(components, echo, manifest, kit.request('{"v":"a"}', intent='{"x":1}')).output_json == '{"v":"a"}'
    answer = '{"v":0.125}'
    fraction = kit.newton(f"(call $answer (i32.const 100) (i32.const {len(answer)}))", {100: answer})
    assert run(components, fraction, manifest, kit.request()).output_json == answer
    bomb = '{"v":1e400000000}'
    assert failure(
        components, kit.newton(f"(call $answer (i32.const 100) (i32.const {len(bomb)}))", {100: bomb}), manifest, kit.request()
    ).pure


def test_a_newton_component_s_bytes_bodies_and_secrets_object_arrive(components: ComponentEngine, kit: Kit) -> None:
    body = f"""
      (call $secret (i32.const 300))
      (if (i32.load8_u (i32.const 300)) (then unreachable))
      (call $fetch (i32.const 100) (i32.const {len(URL)}) (i32.const 180) (i32.const 4) (i32.const 0) (i32.const 0)
        (i32.const 1) (i32.load (i32.const 304)) (i32.load (i32.const 308)) (i32.const 200))
      (if (i32.load8_u (i32.const 200)) (then unreachable))
      (call $answer (i32.load (i32.const 216)) (i32.load (i32.const 220)))"""
    component = kit.newton(body, {100: URL, 180: "POST"}, host=True)
    manifest = kit.parsed(NEWTON_WORLD, secrets=["api_key"])
    host = FakeHost([ok(b'{"v":1.5}')], granted={"api_key": SECRET})
    result = run(components, component, manifest, kit.request(), host, digest_key=KEY)
    assert result.output_json == '{"v":1.5}'
    assert json.loads(host.requests[0].body or b"") == {"api_key": SECRET}
    assert SECRET not in result.transcript.to_json()


def test_12_a_prebuilt_newton_component_is_admitted_only_as_frozen(components: ComponentEngine, kit: Kit) -> None:
    answer = "(call $answer (i32.const 100) (i32.const 7))", {100: '{"v":1}'}
    frozen, shimmed = kit.newton(*answer), kit.newton(*answer, clock=True)
    with pytest.raises(ComponentRejected, match="frozen"):
        components.admit(frozen, kit.parsed(NEWTON_WORLD, clock="task"))
    with pytest.raises(ComponentRejected, match="task"):
        components.admit(shimmed, kit.parsed(NEWTON_WORLD, clock="frozen"))
    assert not components.admit(frozen, kit.parsed(NEWTON_WORLD, clock="frozen")).imports_clock
    assert components.admit(shimmed, kit.parsed(NEWTON_WORLD, clock="task")).imports_clock


def test_errors_survive_the_way_between_processes() -> None:
    import pickle

    failed = ComponentFailed("error", "no", pure=True, fuel=5)
    copy = pickle.loads(pickle.dumps(failed))
    assert (copy.kind, copy.message, copy.pure, copy.fuel) == ("error", "no", True, 5)
    assert isinstance(copy, SandboxError)


def test_the_shipped_wit_files_say_what_is_checked(tmp_path: Path) -> None:
    """The worlds as text for authors, and as types in the check, are the same thing: `run` and every function are named in both."""
    from placet.sandbox import worlds

    folder = Path(worlds.__file__).with_name("wit")
    names: dict[World, str] = {PLACET_WORLD: "policydata.wit", NEWTON_WORLD: "newton-provider.wit"}
    for world, name in names.items():
        text = (folder / name).read_text(encoding="utf-8")
        assert text.startswith(f"package {world};")
        assert "export run: func(" in text
        for interface, functions in worlds.IMPORTS[world].items():
            if interface == worlds.CLOCK_IMPORT and world == NEWTON_WORLD:
                continue
            assert f"interface {interface.split('/')[1].split('@')[0]} {{" in text
            for function in functions:
                assert f"{function}: func(" in text


def test_types_are_described_as_in_wit() -> None:
    engine = component_engine()
    text = """(component (import "f" (func (param "a" (list (tuple u8 (option string)))) (param "b" char) (result (result)))))"""
    component = Component(engine, text)
    described = describe_function(component.type.imports(engine)["f"].ty)  # type: ignore[arg-type]
    assert described == "func(a: list<tuple<u8, option<string>>>, b: char) -> result<_, _>"
