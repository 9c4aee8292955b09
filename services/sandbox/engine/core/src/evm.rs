//! Keccak-256 and EIP-55 addresses.

use anyhow::{anyhow, bail, Result};
use sha3::Digest;

use crate::builtins::hex;

pub(crate) fn keccak256(bytes: &[u8]) -> Vec<u8> {
    sha3::Keccak256::digest(bytes).to_vec()
}

fn nibble(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|d| d as u8)
}

/// `0x` and an even number of hex digits.
pub(crate) fn unhex(function: &str, text: &str) -> Result<Vec<u8>> {
    let digits = text.strip_prefix("0x").ok_or_else(|| anyhow!("{function}: want 0x and hex digits"))?;
    if digits.len() % 2 != 0 {
        bail!("{function}: odd number of hex digits");
    }
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| Some((nibble(pair[0])? << 4) | nibble(pair[1])?))
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(|| anyhow!("{function}: not hex"))
}

/// EIP-55: the case of each letter is a bit of the hash of the lower-case address.
pub(crate) fn checksum_address(address: &str) -> Result<String> {
    let name = "evm.checksum_address";
    if unhex(name, address)?.len() != 20 {
        bail!("{name}: an address has 20 bytes");
    }
    let lower = address[2..].to_ascii_lowercase();
    let hash = hex(&keccak256(lower.as_bytes()));
    let cased = lower.chars().zip(hash.chars()).map(|(letter, h)| if h >= '8' { letter.to_ascii_uppercase() } else { letter });
    Ok(format!("0x{}", cased.collect::<String>()))
}
