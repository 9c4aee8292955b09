# Nothing is withdrawn while gas is dearer than a ceiling.
# data.wasm.gas_price.wei is the stake-weighted median of what operators read, and operators within a tenth of it hold quorum stake.
package gas_price

import rego.v1

default decision := {"allow": false, "reasons": ["this policy does not judge such a call, or has no price to judge it by"]}

decision := {"allow": count(reasons) == 0, "reasons": reasons} if {
	input.function.name in {"withdraw", "redeem"}
	data.wasm.gas_price.wei >= 0
}

reasons contains sprintf("gas costs %d wei, above the ceiling of %d wei", [data.wasm.gas_price.wei, data.params.max_wei]) if {
	data.wasm.gas_price.wei > data.params.max_wei
}
