package gas_price_test

import rego.v1

import data.gas_price

withdrawal := {"function": {"name": "withdraw"}}

decide(call, price) := result if {
	result := gas_price.decision with input as call
		with data.params as {"max_wei": 50000000000}
		with data.wasm as {"gas_price": {"wei": price}}
}

test_a_price_at_the_ceiling_is_allowed if decide(withdrawal, 50000000000).allow

test_a_price_above_the_ceiling_is_denied_with_both_numbers if {
	result := decide(withdrawal, 50000000001)
	not result.allow
	result.reasons == {"gas costs 50000000001 wei, above the ceiling of 50000000000 wei"}
}

test_a_price_of_zero_is_a_price if decide(withdrawal, 0).allow

test_prices_beyond_64_bits_are_compared_exactly if not decide(withdrawal, 340282366920938463463374607431768211455).allow

test_redeem_is_judged_as_withdraw_is if not decide({"function": {"name": "redeem"}}, 50000000001).allow

test_another_call_is_denied if not decide({"function": {"name": "transfer"}}, 1).allow

test_without_a_price_nothing_is_allowed if {
	result := gas_price.decision with input as withdrawal
		with data.params as {"max_wei": 1}
		with data.wasm as {}
	not result.allow
}
