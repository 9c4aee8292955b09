# Bounds what one sender may take out of a guarded vault: an amount a withdrawal, a number of withdrawals, and who may receive.
# Judged without outside data. `ordering` is sender: of several attestations made over one state only one executes, so the count holds.
package spend_limit

import rego.v1

default decision := {"allow": false, "reasons": ["this policy does not judge such a call"]}

decision := {"allow": count(reasons) == 0, "reasons": reasons} if amount

# withdraw(uint256,address,address) and redeem(uint256,address,address)
amount := input.arguments[0] if input.function.name in {"withdraw", "redeem"}

receiver := input.arguments[1]

reasons contains sprintf("amount %s is above the limit of %s a withdrawal", [amount, data.params.max_amount]) if {
	u256.gt(amount, data.params.max_amount)
}

reasons contains sprintf("receiver %s is blocked", [receiver]) if {
	receiver in {lower(blocked) | some blocked in data.params.blocked}
}

reasons contains sprintf("the sender has made its %d withdrawals", [data.params.max_count]) if {
	data.task.sequence >= data.params.max_count
}
