//! Unsigned 256-bit integers as policies write them: a decimal string, a 0x string, or an exact JSON integer in;
//! a decimal string out. Nothing wraps: what does not fit aborts the evaluation.

use anyhow::{anyhow, bail, Result};
use num_bigint::BigUint;
use num_traits::Num;
use regorus::Value;

/// Longest literal accepted, in digits: 2^256 - 1 has 78 decimal digits.
const MAX_DIGITS: usize = 78;

fn shown(text: &str) -> String {
    text.chars().take(90).collect()
}

fn digits(function: &str, text: &str, radix: u32) -> Result<BigUint> {
    let all_digits = text.bytes().all(|b| if radix == 16 { b.is_ascii_hexdigit() } else { b.is_ascii_digit() });
    if text.is_empty() || text.len() > MAX_DIGITS || !all_digits {
        bail!("{function}: not an unsigned integer: {:?}", shown(text));
    }
    if radix == 10 && text.len() > 1 && text.starts_with('0') {
        bail!("{function}: leading zero: {:?}", shown(text));
    }
    BigUint::from_str_radix(text, radix).map_err(|e| anyhow!("{function}: {e}"))
}

pub(crate) fn parse(function: &str, value: &Value) -> Result<BigUint> {
    let number = match value {
        Value::String(s) => match s.strip_prefix("0x") {
            Some(hexadecimal) => digits(function, hexadecimal, 16)?,
            None => digits(function, s.as_ref(), 10)?,
        },
        Value::Number(_) => digits(function, &value.to_json_str()?, 10)?,
        _ => bail!("{function}: want a decimal string, a 0x string or an integer"),
    };
    if number.bits() > 256 {
        bail!("{function}: beyond 256 bits");
    }
    Ok(number)
}

pub(crate) fn emit(function: &str, number: BigUint) -> Result<Value> {
    if number.bits() > 256 {
        bail!("{function}: overflow");
    }
    Ok(Value::from(number.to_str_radix(10)))
}
