package vault_exposure_test

import rego.v1

import data.vault_exposure

call(name) := {"function": {"name": name}}

decide(name, total, idle, withdrawal) := result if {
	result := vault_exposure.decision with input as call(name)
		with data.params as {"max_share_bps": 1000, "max_lent_bps": 9000}
		with data.wasm as {"vault_exposure": {"total_assets": total, "idle_assets": idle, "withdrawal_assets": withdrawal}}
}

test_a_withdrawal_of_exactly_the_share_is_allowed if decide("withdraw", 1000, 1000, 100).allow

test_a_withdrawal_above_the_share_is_denied_with_its_numbers if {
	result := decide("withdraw", 1000, 1000, 101)
	not result.allow
	result.reasons == {"withdrawal of 101 is more than 1000 bps of the vault's 1000"}
}

test_redeem_is_judged_as_withdraw_is if not decide("redeem", 1000, 1000, 101).allow

test_a_withdrawal_that_leaves_the_vault_too_exposed_is_denied if {
	result := decide("withdraw", 1000, 150, 100)
	not result.allow
	result.reasons == {"850 of the 900 that are left would be lent out, more than 9000 bps"}
}

test_the_same_withdrawal_of_a_less_exposed_vault_is_allowed if decide("withdraw", 1000, 200, 100).allow

test_assets_that_the_vault_does_not_count_are_not_lent if decide("withdraw", 1000, 5000, 100).allow

test_an_empty_vault_gives_nothing if not decide("withdraw", 0, 0, 1).allow

test_amounts_beyond_64_bits_are_compared_exactly if {
	total := 100000000000000000000000000000000000000
	decide("withdraw", total, total, 10000000000000000000000000000000000000).allow
	not decide("withdraw", total, total, 10000000000000000000000000000000000001).allow
}

test_another_call_is_denied if not decide("transfer", 1000, 1000, 1).allow

test_without_the_vault_nothing_is_allowed if {
	result := vault_exposure.decision with input as call("withdraw")
		with data.params as {"max_share_bps": 1000, "max_lent_bps": 9000}
		with data.wasm as {}
	not result.allow
}
