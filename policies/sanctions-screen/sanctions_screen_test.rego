package sanctions_screen_test

import rego.v1

import data.sanctions_screen

alice := "0x00000000000000000000000000000000000a11ce"

mallory := "0x0000000000000000000000000000000000baddad"

params := {"list_url": "https://lists.example/eth.json", "min_entries": 3}

intent(receiver) := {"from": alice, "function": {"name": "withdraw"}, "arguments": ["1", receiver, alice]}

decide(receiver, listed, entries) := result if {
	result := sanctions_screen.decision with input as intent(receiver)
		with data.params as params
		with data.wasm as {"sanctions": {"listed": listed, "entries": entries}}
}

test_a_receiver_that_is_not_listed_is_allowed if decide(mallory, [], 3).allow

test_a_listed_receiver_is_denied_by_name if {
	result := decide(mallory, [mallory], 3)
	not result.allow
	result.reasons == {"receiver 0x0000000000000000000000000000000000baddad is on the sanctions list"}
}

test_a_listed_sender_is_denied_by_name if {
	result := decide(mallory, [alice], 3)
	not result.allow
	result.reasons == {"sender 0x00000000000000000000000000000000000a11ce is on the sanctions list"}
}

test_a_sender_that_is_its_own_receiver_gets_both_reasons if count(decide(alice, [alice], 3).reasons) == 2

test_addresses_are_compared_whatever_their_case if not decide(mallory, [upper_hex], 3).allow

upper_hex := "0x0000000000000000000000000000000000BADDAD"

test_a_list_with_too_few_entries_is_not_believed if {
	result := decide(mallory, [], 2)
	not result.allow
	result.reasons == {"the sanctions list has 2 entries, fewer than 3: it is not believed"}
}

test_without_data_nothing_is_allowed if {
	result := sanctions_screen.decision with input as intent(mallory)
		with data.params as params
		with data.wasm as {}
	not result.allow
}

test_data_without_a_number_of_entries_allows_nothing if {
	result := sanctions_screen.decision with input as intent(mallory)
		with data.params as params
		with data.wasm as {"sanctions": {"listed": []}}
	not result.allow
}

test_redeem_is_judged_as_withdraw_is if {
	redeem := {"from": alice, "function": {"name": "redeem"}, "arguments": ["1", mallory, alice]}
	result := sanctions_screen.decision with input as redeem
		with data.params as params
		with data.wasm as {"sanctions": {"listed": [mallory], "entries": 3}}
	not result.allow
}

test_another_function_is_denied if {
	result := sanctions_screen.decision with input as {"from": alice, "function": {"name": "transfer"}, "arguments": [alice, "1"]}
		with data.params as params
		with data.wasm as {"sanctions": {"listed": [], "entries": 3}}
	not result.allow
}
