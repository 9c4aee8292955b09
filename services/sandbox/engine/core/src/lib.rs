//! A deterministic Rego engine: `regorus` with exact JSON numbers and Placet's builtins.
//!
//! What a policy can reach is its modules, its data, the input and the timestamp that the host passes with the call.
//! No clock, no random source, no network, no files.

mod builtins;
mod evm;
mod guard;
mod sections;
mod u256;

pub use builtins::set_now_ns;
pub use guard::{guard_json, Numbers};
pub use sections::{merge_sections, Section};

use anyhow::Result;

/// An engine without policies: Rego v1, prints gathered, builtin errors abort the evaluation instead of becoming undefined.
pub fn new_engine() -> Result<regorus::Engine> {
    let mut engine = regorus::Engine::new();
    engine.set_rego_v0(false);
    engine.set_gather_prints(true);
    engine.set_strict_builtin_errors(true);
    builtins::install(&mut engine)?;
    Ok(engine)
}
