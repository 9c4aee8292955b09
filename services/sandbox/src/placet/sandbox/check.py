"""The check of a policy before it is admitted, on the syntax trees that the engine itself produced.

The engine notices an unknown function only when the call is reached: `y if { false; http.send({}) }` loads and runs. And a
policy can shadow the builtins it claims to use: after `import data.evil as u256`, `u256.lt` is whatever the author wrote.
So a policy is admitted only if every finding below is absent. The check looks at size and structure, never at time, so
every operator that has this version comes to the same answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from placet.sandbox.errors import PolicyRejected
from placet.sandbox.rego import RegoEngine

CHECKER_VERSION = "1"
"""Stands in the `Admitted` records of operators. It changes with every change of what is refused."""

BUILTINS = frozenset(
    """
    abs array.concat array.reverse array.slice base64.decode base64.encode base64.is_valid base64url.decode base64url.encode
    base64url.encode_no_pad bits.and bits.lsh bits.negate bits.or bits.rsh bits.xor ceil concat contains count
    crypto.hmac.equal crypto.hmac.sha256 crypto.sha256 endswith evm.checksum_address evm.is_checksum_address evm.keccak256
    evm.keccak256_text floor format_int glob.match glob.quote_meta graph.reachable graph.reachable_paths hex.decode hex.encode
    indexof indexof_n intersection is_array is_boolean is_null is_number is_object is_set is_string json.filter json.is_valid
    json.marshal json.marshal_with_options json.patch json.remove json.unmarshal lower max min net.cidr_contains
    net.cidr_expand net.cidr_is_valid numbers.range numbers.range_step object.filter object.get object.keys object.remove
    object.subset object.union object.union_n print product regex.find_all_string_submatch_n regex.find_n regex.is_valid
    regex.match regex.replace regex.split regex.template_match replace round semver.compare semver.is_valid set sort split
    sprintf startswith strings.any_prefix_match strings.any_suffix_match strings.count strings.replace_n strings.reverse
    substring sum time.add_date time.clock time.date time.diff time.format time.now_ns time.parse_duration_ns time.parse_ns
    time.parse_rfc3339_ns time.weekday to_number trim trim_left trim_prefix trim_right trim_space trim_suffix type_name
    u256.add u256.cmp u256.div u256.eq u256.gt u256.gte u256.lt u256.lte u256.max u256.min u256.mod u256.mul u256.parse
    u256.sub u256.to_hex union units.parse units.parse_bytes upper walk
    """.split()  # noqa: SIM905 (read as a table)
)
"""What a policy may call. A test holds this list against the engine."""

DENIED = frozenset({"rand.intn", "trace", "__builtin_sets.intersection", "__builtin_sets.union"})
"""In the engine, and refused: random, or without effect."""

RESERVED_ROOTS = frozenset({"params", "args", "wasm", "task", "inference"})
"""Below `data` these hold what the host passes in; a package there would hide it."""

_OTHER_NAMESPACES = ["aws", "graphql", "http", "io", "opa", "providers", "rand", "rego", "urlquery", "uuid", "yaml"]
_SHADOWABLE = frozenset(name.split(".")[0] for name in BUILTINS) | frozenset(_OTHER_NAMESPACES)
_NAMESPACES = frozenset(name.split(".")[0] for name in BUILTINS if "." in name) | frozenset(_OTHER_NAMESPACES)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*\.rego")
_MAX_FILE_NAME = 200
_MAX_TREE_DEPTH = 400
_MAX_TREE_BYTES = 32 << 20

Node = dict[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One reason not to admit a policy. `line` counts from 1, 0 where no line applies."""

    file: str
    line: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message} [{self.rule}]"


def check_policy(engine: RegoEngine, modules: Mapping[str, str], entrypoint: str) -> list[Finding]:
    """All findings, sorted; an empty list means that the policy may be admitted. Never raises for what a policy holds."""
    findings = [
        Finding(name[:_MAX_FILE_NAME], 0, "file-name", "a module is named by a relative path of letters, digits, . _ - that ends in .rego")
        for name in sorted(modules)
        if len(name) > _MAX_FILE_NAME or not _FILE_NAME.fullmatch(name)
    ]
    try:
        trees = _parse(engine.syntax_json(modules))
    except PolicyRejected as rejected:
        return [*findings, Finding("", 0, "syntax", rejected.message)]
    check = _Check(trees)
    check.run(entrypoint)
    return sorted({*findings, *check.findings})


def rule_names(trees: list[Node]) -> set[str]:
    """Full paths (`data.<package>.<rule>`) of the rules and functions in syntax trees."""
    names = set()
    for tree in trees:
        package = "data." + (_path(tree["ast"]["package"]["refr"]) or "?")
        for rule in tree["ast"]["rules"]:
            if path := _head_path(rule):
                names.add(f"{package}.{path}")
    return names


@dataclass(frozen=True, slots=True)
class _Module:
    file: str
    package: str
    imports: Mapping[str, str]
    """Local name → full path, for imports below `data`."""
    rules: list[Node]


class _Check:
    def __init__(self, trees: list[Node]) -> None:
        self.findings: list[Finding] = []
        self._names = rule_names(trees)
        self._modules = [self._module(tree) for tree in trees]
        self._functions = {f"{m.package}.{_head_path(rule)}" for m in self._modules for rule in m.rules if _is_function(rule)}
        self._calls: dict[str, set[str]] = {}
        self._places: dict[str, tuple[str, int]] = {}

    def run(self, entrypoint: str) -> None:
        for module in self._modules:
            for rule in module.rules:
                self._check_head(module, rule)
                self._check_body(module, rule)
        for name in _on_cycles(self._calls):
            file, line = self._places[name]
            self._find(file, line, "recursion", f"function {name} calls itself")
        if entrypoint not in self._names:
            self._find("", 0, "entrypoint", f"there is no rule {entrypoint[:200]}")
        elif entrypoint in self._functions:
            self._find("", 0, "entrypoint", f"{entrypoint} is a function")

    def _find(self, file: str, line: int, rule: str, message: str) -> None:
        self.findings.append(Finding(file, line, rule, message))

    def _module(self, tree: Node) -> _Module:
        file, ast = str(tree["source"]["file"]), tree["ast"]
        source = str(tree["source"]["contents"]).encode()
        components = (_path(ast["package"]["refr"]) or "?").split(".")
        line = _line(ast["package"])
        if components[0] in RESERVED_ROOTS:
            self._find(file, line, "reserved-package", f"package {components[0]} would hide data.{components[0]}")
        for component in components:
            if component in _NAMESPACES:
                self._find(file, line, "shadowed-name", f"package component {component} is the name of a builtin namespace")
        imports = {}
        for item in ast.get("imports") or []:
            path = _path(item["refr"]) or ""
            root = path.split(".")[0]
            if root in ("rego", "future"):
                continue
            if root not in ("data", "input"):
                self._find(file, _line(item), "import", f"import of {path[:100] or 'a computed path'}: only data and input can be imported")
                continue
            alias = item.get("as")
            name = source[alias["start"] : alias["end"]].decode(errors="replace") if alias else path.split(".")[-1]
            if name in _SHADOWABLE:
                self._find(file, _line(item), "shadowed-name", f"import named {name}, which is a builtin")
            imports[name] = path
        return _Module(file, "data." + ".".join(components), imports, ast["rules"])

    def _check_head(self, module: _Module, rule: Node) -> None:
        path, line = _head_path(rule), _line(next(iter(rule.values())))
        if path is None:
            self._find(module.file, line, "computed-name", "a rule whose name cannot be read")
        elif path.split(".")[0] in _SHADOWABLE:
            self._find(module.file, line, "shadowed-name", f"rule {path} is named like the builtin {path.split('.')[0]}")

    def _check_body(self, module: _Module, rule: Node) -> None:
        own = f"{module.package}.{_head_path(rule)}" if _is_function(rule) else None
        if own:
            self._places.setdefault(own, (module.file, _line(next(iter(rule.values())))))
            self._calls.setdefault(own, set())
        for node, line in _nodes(rule):
            if "Call" in node:
                self._check_call(module, own, node["Call"], line)
            if node.get("with_mods"):
                self._check_with(module, node["with_mods"], line)
            arithmetic = node.get("ArithExpr")
            if arithmetic and str(arithmetic.get("op")).lower() == "div":
                self._find(module.file, _line(arithmetic) or line, "inexact-division", "/ is not exact: use u256.div")

    def _check_call(self, module: _Module, own: str | None, call: Node, line: int) -> None:
        line = _line(call) or line
        name = _path(call["fcn"])
        if name is None:
            self._find(module.file, line, "computed-name", "a function whose name is computed")
            return
        head, _, rest = name.partition(".")
        full = f"{module.imports[head]}.{rest}" if rest and head in module.imports else module.imports.get(name, name)
        target = full if full in self._functions else f"{module.package}.{name}"
        if target in self._functions:
            if own:
                self._calls[own].add(target)
        elif full != name:
            self._find(module.file, line, "unknown-function", f"{name} is {full}, which is not a function")
        elif name in DENIED:
            self._find(module.file, line, "denied-function", f"{name} is refused")
        elif name not in BUILTINS:
            self._find(module.file, line, "unknown-function", f"there is no function {name}")

    def _check_with(self, module: _Module, modifiers: list[Node], line: int) -> None:
        for modifier in modifiers:
            target = _path(modifier["refr"]) or "a computed path"
            if target.split(".")[0] not in ("input", "data") or target in self._functions:
                self._find(module.file, _line(modifier) or line, "with-target", f"with on {target}: only input and data can be replaced")


def _parse(text: str) -> list[Node]:
    if len(text) > _MAX_TREE_BYTES:
        raise PolicyRejected("the syntax tree is too large", kind="size")
    depth = deepest = 0
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text):
        mark = token.group()
        if mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    if deepest > _MAX_TREE_DEPTH:
        raise PolicyRejected("an expression or reference is nested too deeply", kind="size")
    trees: list[Node] = json.loads(text)
    return trees


def _line(node: Node) -> int:
    span = node.get("span") if isinstance(node, dict) else None
    return int(span["line"]) if isinstance(span, dict) else 0


def _path(expression: Node) -> str | None:
    """`a.b["c"]` as `a.b.c`; None if any part is computed."""
    parts: list[str] = []
    while True:
        if dot := expression.get("RefDot"):
            parts.append(str(dot["field"][1]))
            expression = dot["refr"]
        elif bracket := expression.get("RefBrack"):
            index = bracket["index"].get("String") or bracket["index"].get("RawString")
            if not index:
                return None
            parts.append(str(index["value"]))
            expression = bracket["refr"]
        elif variable := expression.get("Var"):
            parts.append(str(variable["value"]))
            return ".".join(reversed(parts))
        else:
            return None


def _head(rule: Node) -> tuple[str, Node]:
    """("Func" | "Set" | "Compr" | "Default", the node that holds `refr`)."""
    if "Default" in rule:
        return "Default", rule["Default"]
    kind, head = next(iter(rule["Spec"]["head"].items()))
    return str(kind), head


def _is_function(rule: Node) -> bool:
    kind, head = _head(rule)
    return kind == "Func" or (kind == "Default" and bool(head.get("args")))


def _head_path(rule: Node) -> str | None:
    """The constant part of a rule's name: `p` for `p[x]`, `a.b` for `a.b.c[x]` is `a.b.c`."""
    expression: Node = _head(rule)[1]["refr"]
    while (path := _path(expression)) is None:
        inner = expression.get("RefBrack") or expression.get("RefDot")
        if not inner:
            return None
        expression = inner["refr"]
    return path


def _nodes(root: Node) -> Iterator[tuple[Node, int]]:
    """Every object of a tree with the line of the closest span above it."""
    stack: list[tuple[Any, int]] = [(root, 0)]
    while stack:
        node, line = stack.pop()
        if isinstance(node, dict):
            line = _line(node) or line
            yield node, line
            stack.extend((child, line) for child in node.values())
        elif isinstance(node, list):
            stack.extend((child, line) for child in node)


def _on_cycles(graph: Mapping[str, set[str]]) -> list[str]:
    """Names that can reach themselves, in time linear in names and calls: those that share a strongly connected component with
    another name, or call themselves (Tarjan 1972, without recursion: the graph is a stranger's)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    open_names: list[str] = []
    is_open: set[str] = set()
    found: list[str] = []
    for root in graph:
        if root in number:
            continue
        path: list[tuple[str, Iterator[str]]] = []
        following: str | None = root
        while following is not None or path:
            if following is not None:
                number[following] = low[following] = len(number)
                open_names.append(following)
                is_open.add(following)
                path.append((following, iter(graph[following])))
                following = None
            name, calls = path[-1]
            for called in calls:
                if called in graph and called not in number:
                    following = called
                    break
                if called in is_open:
                    low[name] = min(low[name], number[called])
            if following is not None:
                continue
            path.pop()
            if path:
                low[path[-1][0]] = min(low[path[-1][0]], low[name])
            if low[name] == number[name]:
                component: list[str] = []
                while not component or component[-1] != name:
                    component.append(open_names.pop())
                is_open.difference_update(component)
                if len(component) > 1 or name in graph[name]:
                    found += component
    return sorted(found)
