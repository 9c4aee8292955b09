//! A 32-byte word: an unsigned integer or an address. Decimal text in and out, exact at every size.

#[derive(Clone, Copy)]
pub struct Word([u8; 32]);

impl Word {
    /// Decimal digits without sign; refuses what does not fit 256 bits.
    pub fn from_decimal(text: &str) -> Result<Word, String> {
        if text.is_empty() {
            return Err("no amount".into());
        }
        let mut word = [0u8; 32];
        for digit in text.bytes() {
            if !digit.is_ascii_digit() {
                return Err(format!("{text} is no unsigned integer"));
            }
            let mut carry = u32::from(digit - b'0');
            for byte in word.iter_mut().rev() {
                let value = u32::from(*byte) * 10 + carry;
                *byte = value as u8;
                carry = value >> 8;
            }
            if carry != 0 {
                return Err(format!("{text} does not fit 256 bits"));
            }
        }
        Ok(Word(word))
    }

    pub fn from_address(text: &str) -> Result<Word, String> {
        let bytes = unhex(text).ok_or("no hex")?;
        if bytes.len() != 20 {
            return Err(format!("{text} is no address"));
        }
        let mut word = [0u8; 32];
        word[12..].copy_from_slice(&bytes);
        Ok(Word(word))
    }

    /// A contract's answer that is exactly one word: a contract that is not there answers nothing.
    pub fn from_answer(text: &str) -> Result<Word, String> {
        let bytes = unhex(text).ok_or("no hex")?;
        bytes.try_into().map(Word).map_err(|bytes: Vec<u8>| format!("{} bytes, not one word", bytes.len()))
    }

    pub fn address(&self) -> Result<String, String> {
        if self.0[..12].iter().any(|byte| *byte != 0) {
            return Err("an answer that is no address".into());
        }
        Ok(format!("0x{}", &self.hex()[24..]))
    }

    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub fn decimal(&self) -> String {
        let mut left = self.0;
        let mut digits = Vec::new();
        while left.iter().any(|byte| *byte != 0) {
            let mut remainder = 0u32;
            for byte in left.iter_mut() {
                let value = (remainder << 8) | u32::from(*byte);
                *byte = (value / 10) as u8;
                remainder = value % 10;
            }
            digits.push(b'0' + remainder as u8);
        }
        digits.reverse();
        if digits.is_empty() {
            return "0".into();
        }
        digits.into_iter().map(char::from).collect()
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x")?;
    if digits.len() % 2 != 0 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok()).collect()
}
