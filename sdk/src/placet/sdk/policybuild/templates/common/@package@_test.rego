package @package@_test

import rego.v1

import data.@package@

withdrawal := {"function": {"name": "withdraw"}}

decide(call, value) := result if {
	result := @package@.decision with input as call
		with data.params as {"ceiling": 100}
		with data.wasm as {"@package@": {"value": value}}
}

test_a_value_at_the_ceiling_is_allowed if decide(withdrawal, 100).allow

test_a_value_above_the_ceiling_is_denied_with_its_reason if {
	result := decide(withdrawal, 101)
	not result.allow
	result.reasons == {"the value is 101, above the ceiling of 100"}
}

test_another_call_is_denied if not decide({"function": {"name": "transfer"}}, 1).allow

test_without_data_nothing_is_allowed if {
	result := @package@.decision with input as withdrawal
		with data.params as {"ceiling": 100}
		with data.wasm as {}
	not result.allow
}
