//! One event call as it arrived: reading it, judging whether it is valid, and telling duplicates from conflicts.

use super::definitions::{Definitions, Schema};
use super::json::{Json, is_integer};
use super::number;
use super::sha256;
use super::time;
use super::value::Value;

const MAX_ID_BYTES: usize = 255;

#[derive(Clone, Debug)]
pub struct Record {
    pub kind: String,
    /// The event's name: `page_view` for a page, `screen_view` for a screen, none for identify, group and alias.
    pub event: Option<String>,
    pub name: Option<String>,
    pub message_id: String,
    pub user: Option<String>,
    pub anonymous: Option<String>,
    pub previous: Option<String>,
    pub at: i64,
    pub properties: Json,
    pub traits: Json,
    pub context: Json,
    /// What makes two records with one key the same, in canonical text.
    fingerprint: String,
    /// Not taken back.
    pub live: bool,
    /// Its edges were not refused.
    pub linked: bool,
    /// It was dated after the clock when it came, and the clock has not reached it.
    pub waits: bool,
}

impl Record {
    /// None: the record is invalid.
    pub fn read(json: &Json, line: &str, definitions: &Definitions) -> Option<Record> {
        let kind = json.get("type").text()?.to_string();
        let event = match kind.as_str() {
            "track" => Some(json.get("event").text().filter(|name| !name.is_empty())?.to_string()),
            "page" => Some("page_view".to_string()),
            "screen" => Some("screen_view".to_string()),
            "identify" | "group" | "alias" => None,
            _ => return None,
        };
        let [user, anonymous, previous, group] =
            ["userId", "anonymousId", "previousId", "groupId"].map(|k| id(json.get(k)));
        let (user, anonymous, previous, group) = (user?, anonymous?, previous?, group?);
        user.as_ref().or(anonymous.as_ref())?;
        let [properties, traits, context] = ["properties", "traits", "context"].map(|key| json.get(key));
        if [properties, traits, context].iter().any(|v| !v.is_null() && v.map().is_none()) {
            return None;
        }
        let told = context.get("traits");
        let elsewhere = kind == "identify" && traits.map().is_none_or(|traits| traits.is_empty());
        let traits = if elsewhere && told.map().is_some() { told } else { traits };
        if !fits(event.as_deref().and_then(|name| definitions.schemas.get(name)), properties) {
            return None;
        }
        let stated = ["timestamp", "originalTimestamp"].map(|key| json.get(key));
        let at = time::read(if stated[0].is_null() { stated[1] } else { stated[0] })?;
        let original = if stated[1].is_null() { stated[0] } else { stated[1] };
        let ids = [&user, &anonymous, &previous, &group].map(|id| id.clone().map_or(Json::Null, Json::Text));
        let same = [json.get("type"), json.get("event"), json.get("name"), properties, traits, original];
        let same = same.into_iter().cloned().chain(ids).collect();
        Some(Record {
            kind,
            event,
            name: json.get("name").text().map(str::to_string),
            message_id: message_id(json.get("messageId"), line)?,
            user,
            anonymous,
            previous,
            at,
            properties: properties.clone(),
            traits: traits.clone(),
            context: context.clone(),
            fingerprint: Json::List(same).print(),
            live: true,
            linked: true,
            waits: false,
        })
    }

    /// The id the event belongs to.
    pub fn own(&self) -> &str {
        self.user.as_deref().or(self.anonymous.as_deref()).unwrap_or("")
    }

    /// Takes erased ids out of it. What tells duplicates stays.
    pub fn strike(&mut self, is_erased: impl Fn(&str) -> bool) {
        for text in [&mut self.anonymous, &mut self.previous, &mut self.name] {
            text.take_if(|text| is_erased(text));
        }
        [&mut self.properties, &mut self.traits, &mut self.context]
            .into_iter()
            .for_each(|body| body.strike(&is_erased));
    }

    pub fn is_activity(&self) -> bool {
        self.event.is_some()
    }

    pub fn same_content(&self, other: &Record) -> bool {
        self.fingerprint == other.fingerprint
    }

    /// The order of events: by time, then message id, then own id.
    pub fn order(&self) -> (i64, &[u8], &[u8]) {
        (self.at, self.message_id.as_bytes(), self.own().as_bytes())
    }
}

/// An id: absent, or a string, or (outer none) invalid.
pub fn id(json: &Json) -> Option<Option<String>> {
    let text = match json {
        Json::Null => return Some(None),
        Json::Text(text) => text.clone(),
        Json::Number(text) if is_integer(text) => number::plain(text),
        _ => return None,
    };
    match text.len() {
        0 => Some(None),
        1..=MAX_ID_BYTES => Some(Some(text)),
        _ => None,
    }
}

fn message_id(json: &Json, line: &str) -> Option<String> {
    match json {
        Json::Text(text) if text.len() > MAX_ID_BYTES => None,
        Json::Text(text) if !text.is_empty() => Some(text.clone()),
        Json::Null | Json::Text(_) => Some(format!("line:{}", &sha256::hex(line)[..32])),
        _ => None,
    }
}

fn fits(schema: Option<&Schema>, properties: &Json) -> bool {
    let Some(schema) = schema else {
        return true;
    };
    let typed = |name: &String, wanted: &String| is_a(properties.get(name), wanted);
    schema.required.iter().all(|(name, wanted)| typed(name, wanted))
        && schema.optional.iter().all(|(name, wanted)| properties.get(name).is_null() || typed(name, wanted))
}

fn is_a(json: &Json, wanted: &str) -> bool {
    match wanted {
        "string" => json.text().is_some(),
        "number" => Value::of(json).number().is_some(),
        "boolean" => matches!(json, Json::Bool(_)),
        "list" | "array" => json.list().is_some(),
        "object" => json.map().is_some(),
        other => panic!("unknown type {other:?} in a schema"),
    }
}
