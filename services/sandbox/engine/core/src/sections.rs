//! Data arrives in sections: each a root below `data`, the rule for its numbers, and a JSON document.
//!
//! Several sections may share a root (every PolicyData component adds to `data.wasm`); then each must be an object, and a
//! key that two of them hold is an error: the last one to win would let one component overwrite another's findings.

use anyhow::{anyhow, bail, Result};
use regorus::Value;
use std::collections::BTreeMap;

use crate::guard::{guard_json, Numbers};

pub struct Section<'a> {
    pub root: &'a str,
    pub numbers: Numbers,
    pub json: &'a str,
}

fn document(section: &Section) -> Result<Value> {
    guard_json(section.json, section.numbers).map_err(|e| anyhow!("data.{}: {e}", section.root))?;
    Value::from_json_str(section.json).map_err(|e| anyhow!("data.{}: {e}", section.root))
}

/// One object with a key per root.
pub fn merge_sections(sections: &[Section]) -> Result<Value> {
    let mut roots: BTreeMap<Value, Value> = BTreeMap::new();
    for section in sections {
        if section.root.is_empty() {
            bail!("data: a section has no root");
        }
        let (key, added) = (Value::from(section.root), document(section)?);
        let Some(present) = roots.get_mut(&key) else {
            roots.insert(key, added);
            continue;
        };
        let (Ok(target), Ok(source)) = (present.as_object_mut(), added.as_object()) else {
            bail!("data.{}: given twice, and not an object", section.root);
        };
        for (name, value) in source.iter() {
            if target.insert(name.clone(), value.clone()).is_some() {
                bail!("data.{}: key {} is given twice", section.root, name);
            }
        }
    }
    Ok(Value::from(roots))
}
