//! The border of the engine: what JSON may enter it.
//!
//! Exact numbers make two things dangerous that are harmless elsewhere: a short text such as `1e400000000` is a number of
//! 400 million digits, and serde_json's marker of an exact number, an object with one reserved key, can be forged.
//! So the text is read twice: once byte by byte for numbers, depth and reserved strings, before anything is built from
//! it, and once by serde_json for validity and duplicate keys (parsers disagree on which one wins).

use anyhow::{bail, Result};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeSet;

/// Which numbers a document may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Numbers {
    /// Integers of at most 78 digits: Placet's own data, params and input.
    Exact,
    /// Fractions and bounded exponents too: the output of a `newton:provider` component.
    Fractions,
}

pub const MAX_DEPTH: usize = 64;
/// Digits of a number, without sign, point and exponent: 2^256 - 1 has 78.
pub const MAX_DIGITS: usize = 78;
/// No larger than a 78-digit integer, and down to the smallest double (JavaScript writes 5e-324).
const EXPONENTS: std::ops::RangeInclusive<i32> = -400..=77;
const RESERVED: &str = "$serde_json::private";

pub fn guard_json(text: &str, numbers: Numbers) -> Result<()> {
    scan(text, numbers)?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    NoDuplicates.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(())
}

fn scan(text: &str, numbers: Numbers) -> Result<()> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0usize, 0usize);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                let start = at + 1;
                at = start;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                check_string(bytes.get(start..at).unwrap_or(&[]))?;
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let start = at;
                while at < bytes.len() && matches!(bytes[at], b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9') {
                    at += 1;
                }
                check_number(&text[start..at], numbers)?;
            }
            b'[' | b'{' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    bail!("nested deeper than {MAX_DEPTH}");
                }
                at += 1;
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            _ => at += 1,
        }
    }
    Ok(())
}

/// `literal` is what stands between the quotes, escapes included.
fn check_string(literal: &[u8]) -> Result<()> {
    let reserved = if literal.contains(&b'\\') {
        // What serde_json cannot decode here it refuses in the second reading.
        let decoded: String = serde_json::from_slice(&[b"\"", literal, b"\""].concat()).unwrap_or_default();
        decoded.starts_with(RESERVED)
    } else {
        literal.starts_with(RESERVED.as_bytes())
    };
    if reserved {
        bail!("reserved string");
    }
    Ok(())
}

fn check_number(token: &str, numbers: Numbers) -> Result<()> {
    let shown = &token[..token.len().min(60)];
    let unsigned = token.strip_prefix('-').unwrap_or(token);
    if unsigned.bytes().all(|b| b.is_ascii_digit()) {
        if unsigned.len() > MAX_DIGITS {
            bail!("number has more than {MAX_DIGITS} digits: {shown}");
        }
        if token == "-0" && numbers == Numbers::Exact {
            bail!("number is not an exact integer: -0");
        }
        return Ok(());
    }
    if numbers == Numbers::Exact {
        bail!("number is not an exact integer: {shown}");
    }
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent),
        None => (unsigned, "0"),
    };
    if mantissa.bytes().filter(u8::is_ascii_digit).count() > MAX_DIGITS {
        bail!("number has more than {MAX_DIGITS} digits: {shown}");
    }
    // Four digits with a sign at most: longer ones are out of range whatever they say.
    let exponent = if exponent.len() > 5 { None } else { exponent.parse::<i32>().ok() };
    match exponent {
        Some(e) if EXPONENTS.contains(&e) => Ok(()),
        _ => bail!("number has an exponent outside {}..{}: {shown}", EXPONENTS.start(), EXPONENTS.end()),
    }
}

struct NoDuplicates;

impl<'de> DeserializeSeed<'de> for NoDuplicates {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NoDuplicates {
    type Value = ();
    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(NoDuplicates)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            entries.next_value_seed(NoDuplicates)?;
            if !seen.insert(key) {
                return Err(A::Error::custom("duplicate key"));
            }
        }
        Ok(())
    }
}
