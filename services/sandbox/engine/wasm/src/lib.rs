//! The engine as a core WebAssembly module without imports.
//!
//! Exports `memory`, `alloc(len) -> ptr`, `call(op, ptr, len) -> ptr`, `panic_message() -> ptr`.
//! A request is a list of fields, each a u32 length (little endian) and that many bytes of UTF-8, at a place from `alloc`.
//! A reply is a u32 length, one status byte (0 value, 1 error, 2 undefined) and the text.
//!
//! The state is one engine in linear memory. The host copies that memory after the policy is prepared and writes the copy
//! back before every evaluation, so an evaluation starts from the same bytes each time: its output and its fuel are
//! functions of the request.

use anyhow::{anyhow, bail, Result};
use placet_rego_core::{guard_json, merge_sections, new_engine, set_now_ns, Numbers, Section};
use regorus::{Engine, Value};
use std::cell::RefCell;

thread_local! {
    static ENGINE: RefCell<Option<Engine>> = const { RefCell::new(None) };
    static REPLY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static PANIC: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Adds a module: file name, source.
const ADD_POLICY: u32 = 0;
/// Adds static data: sections.
const ADD_DATA: u32 = 1;
/// Analyses the modules, so that the analysis is part of the image.
const PREPARE: u32 = 2;
/// Evaluates a rule: rule path, timestamp in ns or nothing, input, sections.
const EVALUATE: u32 = 3;
/// As EVALUATE, and reports value, prints and coverage.
const EXPLAIN: u32 = 4;
/// Evaluates any query: query, timestamp, input or nothing, sections. For tests and interactive use.
const QUERY: u32 = 5;
/// The syntax trees of all modules as JSON.
const SYNTAX: u32 = 6;
/// Applies the guard to a document: "exact" or "fractions", text.
const GUARD: u32 = 7;

#[no_mangle]
pub extern "C" fn alloc(len: usize) -> *mut u8 {
    let mut buffer = Vec::<u8>::with_capacity(len.max(1));
    let pointer = buffer.as_mut_ptr();
    std::mem::forget(buffer);
    pointer
}

/// Where the text of a panic lies after the trap, ended by a zero byte. Empty when there was none (out of memory).
#[no_mangle]
pub extern "C" fn panic_message() -> *const u8 {
    PANIC.with(|p| p.borrow().as_ptr())
}

fn keep_panic_message() {
    std::panic::set_hook(Box::new(|info| {
        let mut message = info.to_string().into_bytes();
        message.push(0);
        PANIC.with(|p| {
            if let Ok(mut p) = p.try_borrow_mut() {
                *p = message;
            }
        });
    }));
}

fn with_engine<T>(f: impl FnOnce(&mut Engine) -> Result<T>) -> Result<T> {
    ENGINE.with(|cell| {
        let mut engine = cell.borrow_mut();
        if engine.is_none() {
            PANIC.with(|p| p.borrow_mut().push(0));
            keep_panic_message();
            *engine = Some(new_engine()?);
        }
        f(engine.as_mut().ok_or_else(|| anyhow!("no engine"))?)
    })
}

fn fields(mut rest: &[u8]) -> Result<Vec<&str>> {
    let mut fields = vec![];
    while !rest.is_empty() {
        let (length, tail) = rest.split_first_chunk::<4>().ok_or_else(|| anyhow!("bad request"))?;
        let (field, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(|| anyhow!("bad request"))?;
        fields.push(std::str::from_utf8(field).map_err(|_| anyhow!("request is not UTF-8"))?);
        rest = tail;
    }
    Ok(fields)
}

fn numbers(mode: &str) -> Result<Numbers> {
    match mode {
        "exact" => Ok(Numbers::Exact),
        "fractions" => Ok(Numbers::Fractions),
        _ => bail!("unknown rule for numbers: {mode}"),
    }
}

fn sections<'a>(fields: &[&'a str]) -> Result<Vec<Section<'a>>> {
    if fields.len() % 3 != 0 {
        bail!("bad request");
    }
    fields.chunks(3).map(|f| Ok(Section { root: f[0], numbers: numbers(f[1])?, json: f[2] })).collect()
}

/// Adds the data of one evaluation. A root that the static data already has is an error, so neither hides the other.
fn add_sections(engine: &mut Engine, fields: &[&str]) -> Result<()> {
    if fields.is_empty() {
        return Ok(());
    }
    let added = merge_sections(&sections(fields)?)?;
    let present = engine.get_data();
    if let (Ok(present), Ok(added)) = (present.as_object(), added.as_object()) {
        if let Some((root, _)) = added.iter().find(|(root, _)| present.get(root).is_some()) {
            bail!("data: root {root} is given twice");
        }
    }
    engine.add_data(added)
}

fn timestamp(text: &str) -> Result<()> {
    set_now_ns(if text.is_empty() { None } else { Some(text.parse().map_err(|_| anyhow!("bad timestamp"))?) });
    Ok(())
}

fn load(engine: &mut Engine, now: &str, input: &str, rule_for_input: Numbers, data: &[&str]) -> Result<()> {
    timestamp(now)?;
    guard_json(input, rule_for_input).map_err(|e| anyhow!("input: {e}"))?;
    add_sections(engine, data)?;
    engine.set_input_json(input)
}

fn shown(value: Value) -> Result<Option<String>> {
    match value {
        Value::Undefined => Ok(None),
        value => Ok(Some(serde_json::to_string(&value)?)),
    }
}

fn explain(engine: &mut Engine, rule: &str) -> Result<String> {
    engine.set_enable_coverage(true);
    let outcome = engine.eval_rule(rule.into());
    let mut report = serde_json::Map::new();
    match outcome {
        Ok(Value::Undefined) => {}
        Ok(value) => {
            report.insert("value".into(), serde_json::from_str(&value.to_json_str()?)?);
        }
        Err(error) => {
            report.insert("error".into(), error.to_string().into());
        }
    }
    report.insert("prints".into(), serde_json::to_value(engine.take_prints()?)?);
    report.insert("coverage".into(), serde_json::to_value(engine.get_coverage_report()?)?);
    Ok(serde_json::to_string(&report)?)
}

fn run(op: u32, request: &[u8]) -> Result<Option<String>> {
    let fields = fields(request)?;
    let field = |i: usize| fields.get(i).copied().ok_or_else(|| anyhow!("bad request"));
    let data = fields.get(3..).unwrap_or(&[]);
    match op {
        ADD_POLICY => {
            let (name, source) = (field(0)?, field(1)?);
            with_engine(|e| Ok(Some(e.add_policy(name.into(), source.into())?)))
        }
        ADD_DATA => with_engine(|e| add_sections(e, &fields).map(|()| None)),
        PREPARE => with_engine(|e| {
            e.eval_query("true".into(), false)?;
            Ok(None)
        }),
        EVALUATE => {
            let (rule, now, input) = (field(0)?, field(1)?, field(2)?);
            with_engine(|e| {
                load(e, now, input, Numbers::Exact, data)?;
                shown(e.eval_rule(rule.into())?)
            })
        }
        EXPLAIN => {
            let (rule, now, input) = (field(0)?, field(1)?, field(2)?);
            with_engine(|e| {
                load(e, now, input, Numbers::Exact, data)?;
                explain(e, rule).map(Some)
            })
        }
        QUERY => {
            let (query, now, input) = (field(0)?, field(1)?, field(2)?);
            with_engine(|e| {
                if input.is_empty() {
                    timestamp(now)?;
                    add_sections(e, data)?;
                } else {
                    load(e, now, input, Numbers::Fractions, data)?;
                }
                Ok(Some(serde_json::to_string(&e.eval_query(query.into(), false)?)?))
            })
        }
        SYNTAX => with_engine(|e| Ok(Some(e.get_ast_as_json()?))),
        GUARD => guard_json(field(1)?, numbers(field(0)?)?).map(|()| None),
        _ => bail!("unknown operation"),
    }
}

/// # Safety
/// `ptr` must come from `alloc(len)`; the call takes it over.
#[no_mangle]
pub unsafe extern "C" fn call(op: u32, ptr: *mut u8, len: usize) -> *const u8 {
    let request = unsafe { Vec::from_raw_parts(ptr, len, len.max(1)) };
    let outcome = run(op, &request);
    drop(request);
    let (status, body) = match outcome {
        Ok(Some(text)) => (0u8, text),
        Ok(None) => (2, String::new()),
        Err(error) => (1, error.to_string()),
    };
    REPLY.with(|reply| {
        let mut reply = reply.borrow_mut();
        reply.clear();
        reply.extend_from_slice(&(body.len() as u32).to_le_bytes());
        reply.push(status);
        reply.extend_from_slice(body.as_bytes());
        reply.as_ptr()
    })
}

/// There is no random source. Hash seeds get a constant; the builtins that want randomness are overridden or compiled out.
#[no_mangle]
unsafe extern "Rust" fn __getrandom_v03_custom(dest: *mut u8, len: usize) -> Result<(), getrandom::Error> {
    unsafe { std::ptr::write_bytes(dest, 0x5a, len) };
    Ok(())
}
