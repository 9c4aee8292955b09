//! Stand-in for `wasm-bindgen`. There is no JavaScript host; this keeps the engine module free of imports.
pub struct JsValue;

impl JsValue {
    pub fn from_f64(_: f64) -> Self {
        JsValue
    }
}
