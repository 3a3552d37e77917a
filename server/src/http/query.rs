//! Query strings: each door names the parameters that it knows, for those who ask and for those who read about it.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use dataflows::profile::sums::Span;
use dataflows::time::{Millis, parse_date, parse_duration};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time;
use utoipa::IntoParams;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};

use crate::problem::Problem;

/// The parameters of a request: those that every answer takes, and those of its own.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) after: Option<u64>,
    wait_ms: i64,
    pub(super) limit: usize,
    cursor: Option<String>,
    pub(super) own: BTreeMap<String, String>,
}

/// What a door knows besides the parameters of every answer.
pub(super) trait Known {
    const OWN: &'static [&'static str];
}

macro_rules! known {
    ($($name:ident $own:expr;)*) => {$(
        #[derive(Debug)]
        pub(super) struct $name;
        impl Known for $name {
            const OWN: &'static [&'static str] = &$own;
        }
    )*};
}

known! {
    Nothing [];
    Instant ["at"];
    Why ["segment", "at"];
    Part ["limit", "cursor"];
    Dates ["from", "to"];
    PartOfDates ["from", "to", "limit", "cursor"];
    PartOfSoon ["within", "limit", "cursor"];
    Suppress ["suppress"];
    Credit ["model", "by", "conversion", "from", "to"];
    Follow ["view", "profile", "name"];
}

/// A query string that was read by what its door knows.
#[derive(Debug)]
pub(super) struct Asked<K> {
    pub(super) query: Query,
    knows: PhantomData<K>,
}

const LIMIT: usize = 100;
const LIMIT_MAX: usize = 1_000;
const WAIT_MS: i64 = 5_000;
const WAIT_MS_MAX: i64 = 30_000;

/// The parameters of every answer.
const ALWAYS: [&str; 2] = ["after", "wait"];

/// What a parameter is, for those who read about it.
fn told(name: &str) -> (&'static str, Value) {
    let text = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    let date = json!({ "type": "string", "format": "date" });
    match name {
        "after" => ("Wait until the answer includes this position, one that an earlier answer gave.", text("^[0-9]+$")),
        "wait" => ("How long to wait for `after`, at most 30s (5s if not told); then 503.", text("^[0-9]+(ms|s)$")),
        "limit" => (
            "Rows in one part of the list.",
            json!({ "type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT }),
        ),
        "cursor" => ("Where the part begins: the `next` of the part before.", json!({ "type": "string" })),
        "from" => ("The first UTC date.", date),
        "to" => ("The UTC date after the last.", date),
        "within" => ("At most so far from the clock.", text("^[0-9]{1,4}(ms|s|m|h|d)$")),
        "at" => (
            "As of this instant, ms, with the records, corrections and identity of now; not later than the clock.",
            json!({ "type": "integer", "format": "int64" }),
        ),
        "segment" => ("Which segment.", json!({ "type": "string" })),
        "model" => ("By which model; the first of the definitions if not told.", json!({ "type": "string" })),
        "by" => ("What the rows are.", json!({ "type": "string", "enum": ["channel", "campaign"] })),
        "conversion" => ("Conversions of this name alone.", json!({ "type": "string" })),
        "suppress" => ("Take nothing of these ids any more, whenever it happens.", json!({ "type": "boolean" })),
        "view" => ("What to follow.", json!({ "type": "string", "enum": ["intents"] })),
        "profile" => ("What concerns one person, by any id.", json!({ "type": "string" })),
        "name" => ("What concerns one campaign.", json!({ "type": "string" })),
        name => unreachable!("`{name}` is known and not told"),
    }
}

impl<K: Known> IntoParams for Asked<K> {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let parameter = |name: &&str| {
            let (what, schema) = told(name);
            let schema: utoipa::openapi::Schema = serde_json::from_value(schema).expect("it is a schema");
            let told = ParameterBuilder::new().name(*name).parameter_in(ParameterIn::Query);
            let told = told.required(if ["view", "segment"].contains(name) { Required::True } else { Required::False });
            told.description(Some(what)).schema(Some(schema)).build()
        };
        K::OWN.iter().chain(&ALWAYS).map(parameter).collect()
    }
}

impl<K: Known, S: Sync> FromRequestParts<S> for Asked<K> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(Asked { query: Query::read(parts.uri.query().unwrap_or_default(), K::OWN)?, knows: PhantomData })
    }
}

/// A body that is a JSON object; `form` says of which form.
pub(super) fn read_body<T: DeserializeOwned>(body: &[u8], form: &str) -> Result<T, Problem> {
    // A list of the values would do for a structure, and would say less of what is meant.
    let read = serde_json::from_slice::<serde_json::Map<String, Value>>(body);
    let read = read.and_then(|members| serde_json::from_value(Value::Object(members)));
    read.map_err(|error| Problem::bad_request(format!("the body is {form}: {error}")))
}

impl Default for Query {
    fn default() -> Self {
        Query { after: None, wait_ms: WAIT_MS, limit: LIMIT, cursor: None, own: BTreeMap::new() }
    }
}

impl Query {
    /// Reads a query string; parameters that nobody knows and repeated ones are refused.
    fn read(raw: &str, own: &[&str]) -> Result<Query, Problem> {
        let mut query = Query::default();
        let mut seen = BTreeMap::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decode(key)?, decode(value)?);
            if seen.insert(key.clone(), ()).is_some() {
                return Err(Problem::bad_request(format!("the parameter `{key}` is given twice")));
            }
            let wrong = |what: &str| Problem::bad_request(format!("`{key}={value}`: {what}"));
            match key.as_str() {
                "after" => query.after = Some(value.parse().map_err(|_| wrong("not a position that an answer gave"))?),
                "wait" => {
                    let wait = parse_duration(&value).filter(|wait| *wait <= WAIT_MS_MAX);
                    query.wait_ms = wait.ok_or_else(|| wrong("a duration of at most 30s"))?;
                }
                "limit" if own.contains(&"limit") => {
                    let limit = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                    query.limit = limit.ok_or_else(|| wrong("an integer from 1 to 1000"))?;
                }
                "cursor" if own.contains(&"cursor") => query.cursor = Some(value),
                name if own.contains(&name) => drop(query.own.insert(key, value)),
                name => {
                    let all = [own, &ALWAYS].concat().join(", ");
                    return Err(Problem::bad_request(format!("unknown parameter `{name}`; known here: {all}")));
                }
            }
        }
        Ok(query)
    }

    /// Until when there is time to wait for what is asked for.
    pub(super) fn deadline(&self) -> time::Instant {
        time::Instant::now() + Duration::from_millis(self.wait_ms as u64)
    }

    /// Whether the position asked for is included; if it is not, a moment later. Refused when there is no time left.
    pub(super) async fn is_included(&self, at: u64, deadline: time::Instant) -> Result<bool, Problem> {
        let Some(after) = self.after.filter(|after| *after > at) else { return Ok(true) };
        if time::Instant::now() >= deadline {
            return Err(Problem::not_yet(format!("the views include position {at}; {after} was asked for")));
        }
        time::sleep(Duration::from_millis(10)).await;
        Ok(false)
    }

    /// The part of a list of names, which are in order, that is asked for; and the cursor of the next.
    pub(super) fn names<'n, N: Ord + Serialize + DeserializeOwned>(
        &self,
        names: impl Iterator<Item = &'n N>,
    ) -> Result<(Vec<&'n N>, Option<String>), Problem> {
        let after: Option<N> = self.key()?;
        let mut rest = names.filter(|name| after.as_ref().is_none_or(|after| *name > after));
        let part: Vec<_> = rest.by_ref().take(self.limit).collect();
        let next = rest.next().and(part.last()).map(cursor);
        Ok((part, next))
    }

    /// The key that the cursor holds.
    pub(super) fn key<K: DeserializeOwned>(&self) -> Result<Option<K>, Problem> {
        let key = |cursor: &String| {
            let text = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok();
            let key = text.and_then(|text| serde_json::from_slice(&text).ok());
            key.ok_or_else(|| Problem::bad_request("`cursor` is not one that an answer gave"))
        };
        self.cursor.as_ref().map(key).transpose()
    }

    /// The instant `at`.
    pub(super) fn at(&self) -> Result<Option<Millis>, Problem> {
        let read = |at: &String| {
            at.parse().map_err(|_| Problem::bad_request(format!("`at={at}`: an instant in integer milliseconds")))
        };
        self.own.get("at").map(read).transpose()
    }

    /// The UTC dates `from` and `to`: from the one on and before the other.
    pub(super) fn span(&self) -> Result<Span, Problem> {
        let date = |key: &str| {
            let read = |date: &String| {
                let wrong = || Problem::bad_request(format!("`{key}={date}`: a UTC date such as 2026-01-31"));
                parse_date(date).ok_or_else(wrong)
            };
            self.own.get(key).map(read).transpose()
        };
        Ok(Span { from: date("from")?, to: date("to")? })
    }
}

/// A key as readers get it: they make nothing of it, and it stands in a query as it is.
pub(super) fn cursor(key: &(impl Serialize + ?Sized)) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(key).expect("keys have string keys"))
}

fn decode(text: &str) -> Result<String, Problem> {
    let wrong = || Problem::bad_request(format!("`{text}` is not percent-encoded UTF-8"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().ok_or_else(wrong)?, rest.next().ok_or_else(wrong)?];
                let digits = std::str::from_utf8(&digits).map_err(|_| wrong())?;
                u8::from_str_radix(digits, 16).map_err(|_| wrong())?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}
