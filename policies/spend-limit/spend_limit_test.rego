package spend_limit_test

import rego.v1

import data.spend_limit

alice := "0x00000000000000000000000000000000000a11ce"

mallory := "0x0000000000000000000000000000000000baddad"

params := {"max_amount": "1000", "max_count": 3, "blocked": ["0x0000000000000000000000000000000000BaDdAd"]}

intent(amount, receiver) := {"function": {"name": "withdraw"}, "arguments": [amount, receiver, alice]}

decide(amount, receiver, sequence) := result if {
	result := spend_limit.decision with input as intent(amount, receiver)
		with data.params as params
		with data.task as {"sequence": sequence}
}

test_an_amount_at_the_limit_is_allowed if decide("1000", alice, 0).allow

test_an_amount_above_the_limit_is_denied_with_its_reason if {
	result := decide("1001", alice, 0)
	not result.allow
	result.reasons == {"amount 1001 is above the limit of 1000 a withdrawal"}
}

test_amounts_are_compared_as_numbers_of_any_size if {
	not decide("115792089237316195423570985008687907853269984665640564039457584007913129639935", alice, 0).allow
}

test_a_blocked_receiver_is_denied_whatever_the_case_of_its_address if not decide("1", mallory, 0).allow

test_the_last_withdrawal_is_allowed_and_the_next_denied if {
	decide("1", alice, 2).allow
	not decide("1", alice, 3).allow
}

test_another_function_is_denied if {
	result := spend_limit.decision with input as {"function": {"name": "transfer"}, "arguments": [alice, "1"]}
		with data.params as params
		with data.task as {"sequence": 0}
	not result.allow
}
