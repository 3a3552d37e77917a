//! Asks a running Thalweg a few things: `cargo run --example query_http [http://127.0.0.1:8080]`.
//!
//! What was written is answered for once its position is: `after` waits for that, at whichever process is asked.

use serde_json::{Value, json};

/// A base address and what is asked of it.
struct Thalweg(String);

impl Thalweg {
    fn get(&self, path: &str) -> Result<Value, ureq::Error> {
        ureq::get(format!("{}/v1/{path}", self.0)).call()?.body_mut().read_json()
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, ureq::Error> {
        ureq::post(format!("{}/v1/{path}", self.0)).send_json(body)?.body_mut().read_json()
    }

    /// All items of a list, page by page.
    fn all(&self, path: &str) -> Result<Vec<Value>, ureq::Error> {
        let (mut items, mut cursor) = (Vec::new(), String::new());
        loop {
            let mut page = self.get(&format!("{path}?limit=100{cursor}"))?;
            items.extend(page["items"].as_array_mut().map(std::mem::take).unwrap_or_default());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(items),
            }
        }
    }
}

fn main() -> Result<(), ureq::Error> {
    let thalweg = Thalweg(std::env::args().nth(1).unwrap_or("http://127.0.0.1:8080".into()));
    let call = json!({"userId": "ada", "event": "add_to_cart", "properties": {"items": 2}});
    let position = thalweg.post("track", &call)?["position"].clone();
    let position = position.as_str().unwrap_or_default();

    let ada = thalweg.get(&format!("profiles/ada?after={position}"))?;
    println!("ada is in {}", ada["segments"]);
    for (journey, stands) in ada["journeys"].as_object().into_iter().flatten() {
        println!("her {journey}: {} since {}; next {}", stands["state"], stands["since"], stands["deadlines"]);
    }
    for segment in thalweg.all("segments")? {
        println!("segment {}: {} people", segment["name"], segment["size"]);
    }
    let credit = thalweg.get("attribution?model=linear&by=campaign")?;
    for row in credit["rows"].as_array().into_iter().flatten() {
        println!("{} {}: {} conversions, value {}", row["channel"], row["campaign"], row["conversions"], row["value"]);
    }
    Ok(())
}
