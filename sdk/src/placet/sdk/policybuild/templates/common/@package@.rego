package @package@

import rego.v1

default decision := {"allow": false, "reasons": ["this policy does not judge such a call, or has no data to judge it by"]}

# Without the value the default denies: a missing answer is never a good one.
decision := {"allow": count(reasons) == 0, "reasons": reasons} if {
	input.function.name == "withdraw"
	data.wasm.@package@.value >= 0
}

reasons contains sprintf("the value is %d, above the ceiling of %d", [data.wasm.@package@.value, data.params.ceiling]) if {
	data.wasm.@package@.value > data.params.ceiling
}
