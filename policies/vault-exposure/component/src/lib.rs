//! What an ERC-4626 vault holds at the reference block, and what a withdrawal takes out of it, in the asset's smallest unit.
//!
//! Arguments: `vault`, `function` (withdraw or redeem), `amount` (assets of a withdraw, shares of a redeem). Everything is read from the
//! chain at one block, so all operators read the same and every field is agreed exactly.
#[allow(warnings)]
mod bindings {
    wit_bindgen::generate!({ world: "policydata", path: "wit" });
}
mod word;

use bindings::placet::policydata::chain;
use bindings::placet::policydata::types::Context;
use serde_json::Value;
use word::Word;

// First four bytes of keccak of the signatures.
const TOTAL_ASSETS: &str = "01e1d114"; // totalAssets()
const ASSET: &str = "38d52e0f"; // asset()
const BALANCE_OF: &str = "70a08231"; // balanceOf(address)
const PREVIEW_REDEEM: &str = "4cdad506"; // previewRedeem(uint256)

struct Component;

impl bindings::Guest for Component {
    fn run(_context: Context, _intent: String, _params: String, arguments: String) -> Result<String, String> {
        let arguments: Value = serde_json::from_str(&arguments).map_err(|error| error.to_string())?;
        let text = |name: &str| arguments[name].as_str().map(str::to_string).ok_or(format!("no {name}"));
        let (vault, amount) = (text("vault")?, Word::from_decimal(&text("amount")?)?);
        let total = read(&vault, TOTAL_ASSETS, None)?;
        let asset = read(&vault, ASSET, None)?.address()?;
        let idle = read(&asset, BALANCE_OF, Some(Word::from_address(&vault)?))?;
        let withdrawal = match text("function")?.as_str() {
            "withdraw" => amount,
            "redeem" => read(&vault, PREVIEW_REDEEM, Some(amount))?,
            other => return Err(format!("{other} is neither withdraw nor redeem")),
        };
        Ok(format!(
            r#"{{"vault_exposure":{{"idle_assets":{},"total_assets":{},"withdrawal_assets":{}}}}}"#,
            idle.decimal(),
            total.decimal(),
            withdrawal.decimal()
        ))
    }
}

/// One word that a contract answers.
fn read(contract: &str, selector: &str, argument: Option<Word>) -> Result<Word, String> {
    let data = format!("0x{selector}{}", argument.map(|word| word.hex()).unwrap_or_default());
    let answer = chain::call(contract, &data).map_err(|error| format!("{contract} does not answer 0x{selector}: {error}"))?;
    Word::from_answer(&answer).map_err(|error| format!("{contract} answers 0x{selector} with {error}"))
}

bindings::export!(Component with_types_in bindings);
