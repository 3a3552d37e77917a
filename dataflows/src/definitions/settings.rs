//! What holds for everything: sessions, identity, who may write, what properties must be, time zone and horizons.
//!
//! In goes the node of a section; out comes its typed form, defaults filled in.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZoneDatabase;
use serde::{Deserialize, Serialize};

use super::Definitions;
use super::reader::{At, Reader};
use super::yaml::Scalar;
use crate::condition::{Path, Root};
use crate::time::{MINUTE, Millis};

/// When a visit ends, and which events make it a buying one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sessions {
    /// The longest silence within a visit: exactly so long stays in.
    pub gap: Millis,
    /// Events that show the intention to buy.
    pub buying: Vec<String>,
}

/// Limits on joining people.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    /// The most ids that one profile may have, at least 1.
    pub max_ids: u32,
}

/// A key that may write events.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WriteKey {
    /// The key itself.
    pub key: String,
    /// The browser origins it may come from (`*`: any); none: no browser.
    pub origins: Vec<String>,
}

/// What of calls is not kept as it was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Privacy {
    /// Values below `properties`, `context` and `traits` that pseudonyms take the place of.
    pub pseudonymise: Vec<Path>,
    /// Whether pseudonyms take the place of all ids of people, too.
    pub ids: bool,
}

impl Privacy {
    /// Whether everything is kept as it was sent.
    pub fn is_empty(&self) -> bool {
        self.pseudonymise.is_empty() && !self.ids
    }
}

/// What the properties of one event must be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Schema {
    /// Properties that must be there, and their type.
    pub required: BTreeMap<String, SchemaType>,
    /// Properties whose type is checked where they are there.
    pub optional: BTreeMap<String, SchemaType>,
}

/// The type of a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SchemaType {
    /// A JSON string.
    String,
    /// A JSON number.
    Number,
    /// A JSON boolean.
    Boolean,
    /// A JSON array.
    List,
    /// A JSON object.
    Object,
    /// Anything but null.
    Any,
}

impl SchemaType {
    /// Its name in the file.
    pub fn name(self) -> &'static str {
        match self {
            SchemaType::String => "string",
            SchemaType::Number => "number",
            SchemaType::Boolean => "boolean",
            SchemaType::List => "list",
            SchemaType::Object => "object",
            SchemaType::Any => "value",
        }
    }
}

impl Default for Sessions {
    fn default() -> Sessions {
        Sessions { gap: 30 * MINUTE, buying: vec!["add_to_cart".into(), "checkout_started".into()] }
    }
}

pub(super) fn version(reader: &mut Reader, at: &At<'_>) -> Option<u32> {
    let version = reader.small_count(at, 0)?;
    if version != 1 {
        reader.problem(&at.place, format!("this program reads version 1 of the file, not {version}"));
    }
    Some(version)
}

pub(super) fn sessions(reader: &mut Reader, at: &At<'_>) -> Option<Sessions> {
    let default = Sessions::default();
    let fields = reader.fields(at, &["gap", "buying"])?;
    let gap = fields.optional(reader, "gap", Reader::span).unwrap_or(default.gap);
    let buying = fields.optional(reader, "buying", Reader::events).unwrap_or(default.buying);
    Some(Sessions { gap, buying })
}

/// A span, or `unlimited`.
pub(super) fn limit(
    reader: &mut Reader,
    at: &At<'_>,
    span: impl Fn(&mut Reader, &At<'_>) -> Option<Millis>,
) -> Option<Option<Millis>> {
    if at.node.scalar() == Some(Scalar::Text("unlimited")) { Some(None) } else { span(reader, at).map(Some) }
}

pub(super) fn timezone(reader: &mut Reader, at: &At<'_>) -> Option<String> {
    let name = reader.text(at)?;
    // The copy of the database inside the program: the same file must mean the same on every machine.
    let zone = TimeZoneDatabase::bundled().get(&name).ok().filter(|zone| !zone.is_unknown());
    let canonical = zone.and_then(|zone| zone.iana_name().map(String::from));
    if canonical.is_none() {
        reader.problem(&at.place, format!("`{name}` is no IANA time zone, like `Europe/Berlin`"));
    }
    canonical
}

pub(super) fn identity(reader: &mut Reader, at: &At<'_>) -> Option<Identity> {
    let fields = reader.fields(at, &["max_ids"])?;
    let max_ids = fields.optional(reader, "max_ids", |reader, at| reader.small_count(at, 1));
    Some(max_ids.map_or(Definitions::default().identity, |max_ids| Identity { max_ids }))
}

pub(super) fn write_keys(reader: &mut Reader, at: &At<'_>) -> Option<Vec<WriteKey>> {
    let mut keys = Vec::new();
    let mut seen = BTreeSet::new();
    for at in reader.items(at) {
        let Some(fields) = reader.fields(&at, &["key", "origins"]) else { continue };
        let origins = fields.list(reader, "origins", origin);
        let Some(key) = fields.required(reader, "key", Reader::name) else { continue };
        if !seen.insert(key.clone()) {
            reader.problem(&at.place, format!("the key `{key}` is there already"));
        }
        keys.push(WriteKey { key, origins });
    }
    Some(keys)
}

/// The ids of people, which are one name space.
const IDS: [&str; 2] = ["userId", "anonymousId"];

pub(super) fn privacy(reader: &mut Reader, at: &At<'_>) -> Option<Privacy> {
    let fields = reader.fields(at, &["pseudonymise"])?;
    let (mut privacy, mut ids) = (Privacy::default(), BTreeSet::new());
    let Some(at) = fields.get("pseudonymise") else { return Some(privacy) };
    for at in reader.items(&at) {
        let Some(text) = reader.text(&at) else { continue };
        match Path::parse(&text) {
            _ if IDS.contains(&text.as_str()) => drop(ids.insert(text)),
            Ok(path) if matches!(path.root, Root::Properties | Root::Context | Root::Traits) => {
                privacy.pseudonymise.push(path);
            }
            _ => {
                let known = ["properties", "context", "traits"].iter().chain(&IDS).copied();
                let root = text.split(['.', '[']).next().unwrap_or_default().to_owned();
                let near = reader.nearest(&root, known).filter(|near| *near != root);
                let near = near.map(|near| text.replacen(&root, &near, 1));
                let message = format!(
                    "`{text}` is no path that can be pseudonymised: it begins with properties, context or traits, and \
                     names a key, or is userId or anonymousId"
                );
                reader.problem_near(&at.place, message, near.as_deref());
            }
        }
    }
    if ids.len() == 1 {
        reader.problem(&at.place, "ids are one name space: write both userId and anonymousId, or neither");
    }
    privacy.ids = !ids.is_empty();
    Some(privacy)
}

/// An origin as browsers write it: one written otherwise would admit nobody.
fn origin(reader: &mut Reader, at: &At<'_>) -> Option<String> {
    let origin = reader.name(at)?;
    let host = origin.split_once("://").map_or("", |(_, host)| host);
    if origin != "*" && (host.is_empty() || host.contains('/') || origin != origin.to_ascii_lowercase()) {
        reader.problem(&at.place, format!("`{origin}` is no origin, like `https://shop.example`, or `*` for all"));
    }
    Some(origin)
}

pub(super) fn schema(reader: &mut Reader, at: &At<'_>) -> Option<Schema> {
    let fields = reader.fields(at, &["required", "optional"])?;
    let required = fields.section(reader, "required", |reader, _, at| schema_type(reader, at));
    let optional = fields.section(reader, "optional", |reader, _, at| schema_type(reader, at));
    for name in required.keys().filter(|name| optional.contains_key(*name)) {
        reader.problem(&at.place, format!("`{name}` is both required and optional"));
    }
    Some(Schema { required, optional })
}

fn schema_type(reader: &mut Reader, at: &At<'_>) -> Option<SchemaType> {
    let types = [
        ("string", SchemaType::String),
        ("number", SchemaType::Number),
        ("boolean", SchemaType::Boolean),
        ("list", SchemaType::List),
        ("object", SchemaType::Object),
        ("any", SchemaType::Any),
    ];
    reader.choice(at, &types)
}
