//! Fetches the value that the policy judges.
#[allow(warnings)]
mod bindings {
    wit_bindgen::generate!({ world: "policydata", path: "wit" });
}

use bindings::placet::policydata::http::{fetch, Header, Method, Request};
use bindings::placet::policydata::types::Context;
use serde_json::{json, Value};

struct Component;

impl bindings::Guest for Component {
    fn run(_context: Context, _intent: String, _params: String, arguments: String) -> Result<String, String> {
        let arguments: Value = serde_json::from_str(&arguments).map_err(|error| error.to_string())?;
        let url = arguments["url"].as_str().ok_or("no url")?.to_string();
        let headers = vec![Header { name: "accept".into(), value: "application/json".into() }];
        let response = fetch(&Request { method: Method::Get, url, headers, body: None })
            .map_err(|error| format!("the value cannot be fetched: {error:?}"))?;
        if response.status != 200 {
            return Err(format!("the server answered {}", response.status));
        }
        let answer: Value = serde_json::from_str(&response.body).map_err(|error| error.to_string())?;
        let value = answer["value"].as_u64().ok_or("the server's value is no integer")?;
        Ok(json!({ "@package@": { "value": value } }).to_string())
    }
}

bindings::export!(Component with_types_in bindings);
