# Nothing leaves a guarded vault to, or for, an address on a published list.
# data.wasm.sanctions is what operators agreed on: `listed` holds what more than a third of the stake saw listed, `entries` the least
# number of entries that so much stake vouches for.
package sanctions_screen

import rego.v1

default decision := {"allow": false, "reasons": ["this policy does not judge such a call, or has no list to judge it by"]}

# Without `entries` there is no agreed list, and the default denies: a missing answer is never a clean one.
decision := {"allow": count(reasons) == 0, "reasons": reasons} if {
	receiver
	data.wasm.sanctions.entries >= 0
}

# withdraw(uint256,address,address) and redeem(uint256,address,address)
receiver := input.arguments[1] if input.function.name in {"withdraw", "redeem"}

listed contains lower(address) if some address in data.wasm.sanctions.listed

reasons contains sprintf("receiver %s is on the sanctions list", [receiver]) if {
	lower(receiver) in listed
}

reasons contains sprintf("sender %s is on the sanctions list", [input.from]) if {
	lower(input.from) in listed
}

reasons contains sprintf("the sanctions list has %d entries, fewer than %d: it is not believed", [data.wasm.sanctions.entries, data.params.min_entries]) if {
	data.wasm.sanctions.entries < data.params.min_entries
}
