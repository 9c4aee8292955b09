"""A network as a rank-1 constraint system over BN254's scalar field, and its witness: A·w ∘ B·w = C·w.

The witness is [1, inputs, outputs, everything else]; inputs and outputs are public. Each value before an activation is bound to its bits:

    (z + 2^(n-1)) · 1 = Σ 2^k b_k,   b_k · (b_k - 1) = 0,   n from the network's bounds, so that Σ cannot wrap around

from which follow the sign (the highest bit) and floor(z / 2^F) (the bits above F, less 2^(n-1-F)). ReLU is their product. All other
steps of a sigmoid are spelled out in `_sigmoid`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from placet.inference.proofs.network import (
    FRACTION_BITS,
    SIGMOID_RANGE,
    SIGMOID_SEGMENTS,
    Integers,
    Layer,
    Network,
    segment_bits,
    sigmoid_table,
)
from placet.verify.zk.field import ORDER

Linear = dict[int, int]
"""Coefficient of each variable; variable 0 is 1."""


@dataclass(slots=True)
class Rows:
    """One of the three matrices: (row, variable, coefficient)."""

    entries: list[tuple[int, int, int]] = field(default_factory=list)

    def put(self, row: int, values: Linear) -> None:
        self.entries.extend((row, variable, coefficient) for variable, coefficient in values.items() if coefficient)


class Circuit:
    """The constraint system of a network. `public` counts 1, inputs and outputs."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.a, self.b, self.c = Rows(), Rows(), Rows()
        self.rows = 0
        self.public = 1 + network.inputs + network.outputs
        self.variables = self.public
        self._steps: list[tuple[str, Layer, list[_Value]]] = []
        outputs = list(range(1 + network.inputs, self.public))
        values: list[Linear] = [{1 + at: 1} for at in range(network.inputs)]
        for layer in network.layers:
            values = self._layer(layer, values)
        for variable, value in zip(outputs, values, strict=True):
            self._must(value, {0: 1}, {variable: 1})

    # --- building

    def _new(self) -> int:
        self.variables += 1
        return self.variables - 1

    def _must(self, a: Linear, b: Linear, c: Linear) -> None:
        self.a.put(self.rows, a)
        self.b.put(self.rows, b)
        self.c.put(self.rows, c)
        self.rows += 1

    def _product(self, a: Linear, b: Linear) -> int:
        out = self._new()
        self._must(a, b, {out: 1})
        return out

    def _bits(self, value: Linear, count: int) -> list[int]:
        """Variables that hold the bits of a value from 0 to 2^count - 1, lowest first."""
        bits = [self._new() for _ in range(count)]
        for bit in bits:
            self._must({bit: 1}, {bit: 1, 0: -1}, {})
        self._must(value, {0: 1}, {bit: 1 << at for at, bit in enumerate(bits)})
        return bits

    def _layer(self, layer: Layer, before: list[Linear]) -> list[Linear]:
        single = [next(iter(value)) if len(value) == 1 and next(iter(value.values())) == 1 else None for value in before]
        out: list[Linear] = []
        values: list[_Value] = []
        for weights, bias, count in zip(layer.weights.tolist(), layer.bias.tolist(), layer.bits, strict=True):
            z: Linear = {0: bias}
            for weight, variable, value in zip(weights, single, before, strict=True):
                if variable is not None:
                    z[variable] = z.get(variable, 0) + weight
                else:
                    for name, coefficient in value.items():
                        z[name] = z.get(name, 0) + weight * coefficient
            if layer.activation == "none":
                out.append(z)
                continue
            first = self.variables
            bits = self._bits({**z, 0: z[0] + (1 << (count - 1))}, count)
            floor: Linear = {bit: 1 << (at - FRACTION_BITS) for at, bit in enumerate(bits) if at >= FRACTION_BITS}
            floor[0] = -(1 << (count - 1 - FRACTION_BITS))
            if layer.activation == "relu":
                out.append({self._product({bits[-1]: 1}, floor): 1})
            else:
                out.append(self._sigmoid(bits[-1], floor, count - FRACTION_BITS))
            values.append(_Value(first, count))
        self._steps.append((layer.activation, layer, values))
        return out

    def _sigmoid(self, positive: int, floor: Linear, count: int) -> Linear:
        """The sigmoid of floor(z / 2^F): |x| from the sign; its segment from five bits; start + slope · rest; 1 beyond the range; and for
        negative x what is left of 1."""
        scale, low = 1 << FRACTION_BITS, segment_bits()
        size = self._product({positive: 2, 0: -1}, floor)
        bits = self._bits({size: 1}, count)
        chosen = bits[low : low + SIGMOID_SEGMENTS.bit_length() - 1]
        beyond = dict.fromkeys(bits[FRACTION_BITS + SIGMOID_RANGE.bit_length() - 1 :], 1)
        inverse = self._new()
        is_beyond = self._product(beyond, {inverse: 1})
        self._must(beyond, {0: 1, is_beyond: -1}, {})
        selectors: list[Linear] = [{0: 1}]
        for bit in reversed(chosen):
            split: list[Linear] = []
            for selector in selectors:
                both = {bit: 1} if selector == {0: 1} else {self._product(selector, {bit: 1}): 1}
                neither = dict(selector)
                for name, coefficient in both.items():
                    neither[name] = neither.get(name, 0) - coefficient
                split += [neither, both]
            selectors = split
        start, slope = _weighted(selectors, [row[0] for row in sigmoid_table()]), _weighted(selectors, [row[1] for row in sigmoid_table()])
        product = self._product(slope, {bit: 1 << at for at, bit in enumerate(bits[:low])})
        parts = self._bits({product: 1}, _PRODUCT_BITS)
        inside = dict(start)
        for at, bit in enumerate(parts):
            if at >= FRACTION_BITS:
                inside[bit] = inside.get(bit, 0) + (1 << (at - FRACTION_BITS))
        rest = {name: -coefficient for name, coefficient in inside.items()}
        rest[0] = rest.get(0, 0) + scale
        upper = dict(inside)
        missing = self._product({is_beyond: 1}, rest)
        upper[missing] = upper.get(missing, 0) + 1
        twice = {name: 2 * coefficient for name, coefficient in upper.items()}
        twice[0] = twice.get(0, 0) - scale
        turned = self._product({positive: 1}, twice)
        out = {name: -coefficient for name, coefficient in upper.items()}
        out[0] = out.get(0, 0) + scale
        out[turned] = out.get(turned, 0) + 1
        return out

    # --- the witness

    def witness(self, row: Integers) -> tuple[list[int], list[int]]:
        """(public, private) for one row of quantised inputs; every entry in [0, ORDER)."""
        outputs, before = self.network.run(row)
        private: list[int] = []
        for (activation, layer, _), values in zip(self._steps, before, strict=True):
            if activation == "none":
                continue
            for value, count in zip(values.tolist(), layer.bits, strict=True):
                shifted = value + (1 << (count - 1))
                bits = [shifted >> at & 1 for at in range(count)]
                private += bits
                floor = value >> FRACTION_BITS
                private += [max(0, floor)] if activation == "relu" else _sigmoid_witness(value >= 0, floor, count - FRACTION_BITS)
        public = [1, *row.tolist(), *outputs.tolist()]
        if len(private) != self.variables - self.public:
            raise AssertionError("the witness is not the circuit's")
        return [value % ORDER for value in public], [value % ORDER for value in private]


@dataclass(frozen=True, slots=True)
class _Value:
    first: int
    bits: int


_PRODUCT_BITS = 2 * FRACTION_BITS - 2
"""Of slope · rest: a slope is below 2^(F-1), what is left inside a segment below 2^segment_bits()."""


def _weighted(selectors: list[Linear], weights: list[int]) -> Linear:
    out: Linear = {}
    for selector, weight in zip(selectors, weights, strict=True):
        for name, coefficient in selector.items():
            out[name] = out.get(name, 0) + weight * coefficient
    return {name: coefficient for name, coefficient in out.items() if coefficient}


def _sigmoid_witness(positive: bool, floor: int, count: int) -> list[int]:
    """The values that `Circuit._sigmoid` makes variables for, in its order."""
    scale, low = 1 << FRACTION_BITS, segment_bits()
    size = floor if positive else -floor
    bits = [size >> at & 1 for at in range(count)]
    high = sum(bits[FRACTION_BITS + SIGMOID_RANGE.bit_length() - 1 :])
    is_beyond = int(high > 0)
    out = [size, *bits, pow(high, -1, ORDER) if high else 0, is_beyond]
    selectors = [1]
    for at, bit in enumerate(reversed(bits[low : low + SIGMOID_SEGMENTS.bit_length() - 1])):
        split: list[int] = []
        for selector in selectors:
            both = selector * bit
            if at:
                out.append(both)
            split += [selector - both, both]
        selectors = split
    start, slope = sigmoid_table()[selectors.index(1)]
    product = slope * (size & ((1 << low) - 1))
    out += [product, *(product >> at & 1 for at in range(_PRODUCT_BITS))]
    inside = start + (product >> FRACTION_BITS)
    missing = is_beyond * (scale - inside)
    upper = inside + missing
    return [*out, missing, int(positive) * (2 * upper - scale)]
