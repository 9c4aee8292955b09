//! The builtins that Placet adds to `regorus`, or puts in the place of one of its own.
//!
//! Every one has a fixed arity; an undefined argument makes the call undefined before it is made; an error aborts the
//! evaluation, which denies.

use anyhow::{anyhow, bail, Result};
use num_bigint::BigUint;
use num_traits::Zero;
use regorus::Value;
use sha2::Digest;
use std::cell::Cell;

use crate::{evm, u256};

thread_local! {
    static NOW_NS: Cell<Option<i64>> = const { Cell::new(None) };
}

/// The timestamp that `time.now_ns` yields: the task's, never a clock's.
pub fn set_now_ns(now: Option<i64>) {
    NOW_NS.with(|cell| cell.set(now));
}

pub(crate) fn text<'a>(function: &str, value: &'a Value) -> Result<&'a str> {
    match value {
        Value::String(s) => Ok(s.as_ref()),
        _ => bail!("{function}: want a string"),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

type Arithmetic = fn(BigUint, BigUint) -> Result<BigUint>;
type Comparison = fn(&BigUint, &BigUint) -> bool;

const ARITHMETIC: [(&str, Arithmetic); 7] = [
    ("u256.add", |a, b| Ok(a + b)),
    ("u256.sub", |a, b| if a < b { bail!("u256.sub: underflow") } else { Ok(a - b) }),
    ("u256.mul", |a, b| Ok(a * b)),
    ("u256.div", |a, b| if b.is_zero() { bail!("u256.div: division by zero") } else { Ok(a / b) }),
    ("u256.mod", |a, b| if b.is_zero() { bail!("u256.mod: division by zero") } else { Ok(a % b) }),
    ("u256.min", |a, b| Ok(a.min(b))),
    ("u256.max", |a, b| Ok(a.max(b))),
];

const COMPARISON: [(&str, Comparison); 5] = [
    ("u256.lt", |a, b| a < b),
    ("u256.lte", |a, b| a <= b),
    ("u256.gt", |a, b| a > b),
    ("u256.gte", |a, b| a >= b),
    ("u256.eq", |a, b| a == b),
];

/// Go's `strings.Count`, which OPA documents: matches that do not overlap; an empty needle counts the gaps between runes.
/// regorus' own counts overlapping matches and panics on an empty needle.
fn count(haystack: &str, needle: &str) -> usize {
    if needle.is_empty() {
        return haystack.chars().count() + 1;
    }
    haystack.matches(needle).count()
}

fn hmac_sha256(message: &str, key: &str) -> Result<String> {
    use hmac::{KeyInit, Mac};
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(key.as_bytes()).map_err(|_| anyhow!("crypto.hmac.sha256: key"))?;
    mac.update(message.as_bytes());
    Ok(hex(&mac.finalize().into_bytes()))
}

/// An address that is not one is not a checksummed one: false, no error.
fn is_checksum_address(address: &str) -> bool {
    evm::checksum_address(address).map(|checksummed| checksummed == address).unwrap_or(false)
}

pub(crate) fn install(engine: &mut regorus::Engine) -> Result<()> {
    let mut add = |name: &str, arity: u8, function: Box<dyn regorus::Extension>| engine.add_extension(name.to_string(), arity, function);

    add(
        "time.now_ns",
        0,
        Box::new(|_| NOW_NS.with(|cell| cell.get()).map(Value::from).ok_or_else(|| anyhow!("time.now_ns: the task has no timestamp"))),
    )?;
    add("rand.intn", 2, Box::new(|_| bail!("rand.intn: refused, not deterministic")))?;
    add("strings.count", 2, Box::new(|p| Ok(Value::from(count(text("strings.count", &p[0])?, text("strings.count", &p[1])?) as u64))))?;

    for (name, operation) in ARITHMETIC {
        add(name, 2, Box::new(move |p| u256::emit(name, operation(u256::parse(name, &p[0])?, u256::parse(name, &p[1])?)?)))?;
    }
    for (name, operation) in COMPARISON {
        add(name, 2, Box::new(move |p| Ok(Value::from(operation(&u256::parse(name, &p[0])?, &u256::parse(name, &p[1])?)))))?;
    }
    add("u256.cmp", 2, Box::new(|p| Ok(Value::from(u256::parse("u256.cmp", &p[0])?.cmp(&u256::parse("u256.cmp", &p[1])?) as i64))))?;
    add("u256.parse", 1, Box::new(|p| u256::emit("u256.parse", u256::parse("u256.parse", &p[0])?)))?;
    add("u256.to_hex", 1, Box::new(|p| Ok(Value::from(format!("0x{}", u256::parse("u256.to_hex", &p[0])?.to_str_radix(16))))))?;

    add(
        "evm.keccak256",
        1,
        Box::new(|p| {
            let bytes = evm::unhex("evm.keccak256", text("evm.keccak256", &p[0])?)?;
            Ok(Value::from(format!("0x{}", hex(&evm::keccak256(&bytes)))))
        }),
    )?;
    add(
        "evm.keccak256_text",
        1,
        Box::new(|p| Ok(Value::from(format!("0x{}", hex(&evm::keccak256(text("evm.keccak256_text", &p[0])?.as_bytes())))))),
    )?;
    add("evm.checksum_address", 1, Box::new(|p| Ok(Value::from(evm::checksum_address(text("evm.checksum_address", &p[0])?)?))))?;
    add("evm.is_checksum_address", 1, Box::new(|p| Ok(Value::from(is_checksum_address(text("evm.is_checksum_address", &p[0])?)))))?;

    add("crypto.sha256", 1, Box::new(|p| Ok(Value::from(hex(&sha2::Sha256::digest(text("crypto.sha256", &p[0])?.as_bytes()))))))?;
    add(
        "crypto.hmac.sha256",
        2,
        Box::new(|p| Ok(Value::from(hmac_sha256(text("crypto.hmac.sha256", &p[0])?, text("crypto.hmac.sha256", &p[1])?)?))),
    )?;
    add("crypto.hmac.equal", 2, Box::new(|p| Ok(Value::from(text("crypto.hmac.equal", &p[0])? == text("crypto.hmac.equal", &p[1])?))))?;
    Ok(())
}
