# A withdrawal takes at most a share of a vault, and leaves it not too exposed to what is lent out.
# Amounts are in the asset's smallest unit and of any size up to 256 bits; a product beyond that fails, and a failure denies.
package vault_exposure

import rego.v1

default decision := {"allow": false, "reasons": ["this policy does not judge such a call, or does not know the vault"]}

decision := {"allow": count(reasons) == 0, "reasons": reasons} if {
	input.function.name in {"withdraw", "redeem"}
	total
	idle
	withdrawal
}

total := u256.parse(data.wasm.vault_exposure.total_assets)

idle := u256.parse(data.wasm.vault_exposure.idle_assets)

withdrawal := u256.parse(data.wasm.vault_exposure.withdrawal_assets)

reasons contains sprintf("withdrawal of %s is more than %d bps of the vault's %s", [withdrawal, data.params.max_share_bps, total]) if {
	u256.gt(u256.mul(withdrawal, 10000), u256.mul(total, data.params.max_share_bps))
}

lent := u256.sub(total, u256.min(total, idle))

left := u256.sub(total, u256.min(total, withdrawal))

reasons contains sprintf("%s of the %s that are left would be lent out, more than %d bps", [lent, left, data.params.max_lent_bps]) if {
	u256.gt(u256.mul(lent, 10000), u256.mul(left, data.params.max_lent_bps))
}
