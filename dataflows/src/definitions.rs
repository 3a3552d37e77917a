//! What to keep true of the events: the whole definitions file as plain typed data.
//!
//! In goes the text of the file (YAML 1.2, so JSON too); out come [`Definitions`] with warnings, or *every* problem of
//! the file, each with its path, line and nearest known name. Nothing here evaluates anything: a [`Segment`] is what
//! was written, made impossible to misread.
//!
//! ```text
//! text ──yaml──▶ nodes with lines ──read──▶ Definitions, and notes of who names whom, where ──check──▶ problems
//! ```
//!
//! Each kind of definition has one file below, with its types and its readers. A reader takes one node and looks at no
//! other definition, so that one document alone can be read as well as a whole file.

mod attribution;
mod campaigns;
mod channels;
mod check;
mod journeys;
mod nearest;
mod reader;
mod segments;
mod settings;
#[cfg(test)]
mod tests;
mod traits;
mod yaml;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use attribution::{Attribution, Conversion, Model, Refund, Touchpoint};
pub use campaigns::{Campaign, Cap, QuietHours, Recommend, When};
pub use channels::{Channel, Deliver};
pub use journeys::{Journey, Since, State, Timer, Transition};
pub use segments::{Absence, CountTest, Segment, Step, TraitTest, Visitor};
pub use settings::{Identity, Privacy, Schema, SchemaType, Sessions, WriteKey};
pub use traits::{SessionField, Source, Trait, TraitOp};

use crate::time::{DAY, Millis};
use reader::{At, Fields, Place, Reader, Scope};
use yaml::Scalar;

/// A thing wrong in a definitions file, said so that its author can mend it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The line, counted from 1.
    pub line: usize,
    /// Where in the tree: `segments.vip.any[0].trait`; empty for the file as a whole.
    pub path: String,
    /// One sentence: what is wrong and what to write.
    pub message: String,
    /// The known name that is closest to an unknown one.
    pub nearest: Option<String>,
}

/// A thing that is allowed and probably not meant.
pub type Warning = Problem;

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.nearest {
            Some(nearest) => write!(f, " (did you mean `{nearest}`?)"),
            None => Ok(()),
        }
    }
}

/// The whole file. What is not written has its default, so that readers need not ask.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Definitions {
    /// The form of the file; always 1.
    pub version: u32,
    /// When a visit ends, and which events make it a buying one.
    pub sessions: Sessions,
    /// How late an event may come, against the clock that the log stamped it with; `None`: any time.
    pub lateness: Option<Millis>,
    /// How long history is kept; `None`: for ever.
    pub retention: Option<Millis>,
    /// The IANA time zone of those who have told none.
    pub timezone: String,
    /// Limits on joining people.
    pub identity: Identity,
    /// Who may write; none: any key, on loopback alone.
    pub write_keys: Vec<WriteKey>,
    /// What of calls is not kept as it was sent.
    pub privacy: Privacy,
    /// What the properties of an event must be, by its name.
    pub schemas: BTreeMap<String, Schema>,
    /// What counts as a touch of marketing; the first that matches.
    pub touchpoints: Vec<Touchpoint>,
    /// What counts as a conversion; each that matches.
    pub conversions: Vec<Conversion>,
    /// How credit for conversions is given to touches.
    pub attribution: Attribution,
    /// Computed traits by name.
    pub traits: BTreeMap<String, Trait>,
    /// Segments by name.
    pub segments: BTreeMap<String, Segment>,
    /// Journeys by name.
    pub journeys: BTreeMap<String, Journey>,
    /// Campaigns by name.
    pub campaigns: BTreeMap<String, Campaign>,
    /// Channels by name.
    pub channels: BTreeMap<String, Channel>,
    /// Everything that is judged again after each event, each after all that it reads; traits before segments and
    /// journeys. It follows from the rest of the file and is not written there.
    pub order: Vec<Judged>,
}

/// A definition that is judged anew after each event, and may read others of its kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Judged {
    /// A computed trait.
    Trait(String),
    /// A segment.
    Segment(String),
    /// A journey.
    Journey(String),
}

impl Judged {
    /// The kind (`trait`, `segment`, `journey`) and the name.
    pub fn parts(&self) -> (&'static str, &str) {
        match self {
            Judged::Trait(name) => ("trait", name),
            Judged::Segment(name) => ("segment", name),
            Judged::Journey(name) => ("journey", name),
        }
    }
}

impl Default for Definitions {
    fn default() -> Definitions {
        Definitions {
            version: 1,
            sessions: Sessions::default(),
            lateness: Some(30 * DAY),
            retention: None,
            timezone: "UTC".into(),
            identity: Identity { max_ids: 100 },
            write_keys: Vec::new(),
            privacy: Privacy::default(),
            schemas: BTreeMap::new(),
            touchpoints: Vec::new(),
            conversions: Vec::new(),
            attribution: Attribution::default(),
            traits: BTreeMap::new(),
            segments: BTreeMap::new(),
            journeys: BTreeMap::new(),
            campaigns: BTreeMap::new(),
            channels: BTreeMap::new(),
            order: Vec::new(),
        }
    }
}

impl Definitions {
    /// Reads and checks a whole file.
    ///
    /// Either the definitions and what looks like a slip, or everything that is wrong; both by line. The templates of
    /// campaigns are the one thing not looked into.
    pub fn parse(text: &str) -> Result<(Definitions, Vec<Warning>), Vec<Problem>> {
        let mut reader = Reader::default();
        let definitions = match yaml::read(text, &mut reader.problems) {
            Some(root) => check::checked(read(&mut reader, &At::root(&root)), &mut reader),
            None => Definitions::default(),
        };
        reader.problems.sort();
        reader.warnings.sort();
        if reader.problems.is_empty() { Ok((definitions, reader.warnings)) } else { Err(reader.problems) }
    }
}

/// The line of a path like `campaigns.come_back.template` in a file, for checks that are made elsewhere.
///
/// `None` if the text is no YAML or has no such path.
pub fn line_of(text: &str, path: &str) -> Option<usize> {
    let root = yaml::read(text, &mut Vec::new())?;
    At::root(&root).find(path)
}

/// The things of one section of a file by name, as they are written: each as JSON, the keys of maps in order.
///
/// Empty if the text is no YAML or has no such section.
pub fn written(text: &str, section: &str) -> BTreeMap<String, String> {
    let Some(root) = yaml::read(text, &mut Vec::new()) else { return BTreeMap::new() };
    let Some(section) = At::root(&root).get(section) else { return BTreeMap::new() };
    let thing = |name: &str| Some((name.to_owned(), Reader::default().json(&section.get(name)?)));
    section.keys().into_iter().filter_map(thing).collect()
}

/// One document as JSON, the keys of maps in order.
pub fn document(text: &str) -> Result<String, Vec<Problem>> {
    let mut reader = Reader::default();
    let json = yaml::read(text, &mut reader.problems).map(|root| reader.json(&At::root(&root)));
    if reader.problems.is_empty() { Ok(json.unwrap_or_default()) } else { Err(reader.problems) }
}

/// Whether a section has things by name; none: the file has no such section.
pub fn is_by_name(section: &str) -> Option<bool> {
    let all = SECTIONS[1..].iter().chain(&SECTIONS_LATER);
    let by_name = ["schemas", "traits", "segments", "journeys", "campaigns", "channels", "metrics", "funnels"];
    all.copied().find(|known| *known == section).map(|known| by_name.contains(&known))
}

/// The sections of the file.
const SECTIONS: [&str; 17] = [
    "version",
    "sessions",
    "lateness",
    "retention",
    "timezone",
    "identity",
    "write_keys",
    "privacy",
    "schemas",
    "touchpoints",
    "conversions",
    "attribution",
    "traits",
    "segments",
    "journeys",
    "campaigns",
    "channels",
];

/// The sections that are part of the file's form and not built yet.
const SECTIONS_LATER: [&str; 2] = ["metrics", "funnels"];

/// The whole file; what could not be read is left out or has its default.
fn read(reader: &mut Reader, at: &At<'_>) -> Definitions {
    let default = Definitions::default();
    if at.node.scalar() == Some(Scalar::Null) {
        reader.problem(&at.place, "the file is empty; write at least `version: 1`");
        return default;
    }
    let Some(file) = reader.fields(at, &[SECTIONS.as_slice(), &SECTIONS_LATER].concat()) else { return default };
    for later in SECTIONS_LATER {
        if let Some(at) = file.get(later) {
            reader.not_in_this_version(&at, later);
        }
    }
    let version = file.optional(reader, "version", settings::version).unwrap_or(default.version);
    reader.scope = Scope::Facts;
    let sessions = file.optional(reader, "sessions", settings::sessions).unwrap_or_default();
    let schemas = file.section(reader, "schemas", |reader, name, at| {
        reader.uses_event(at, name, false);
        settings::schema(reader, at)
    });
    let touchpoints = file.list(reader, "touchpoints", attribution::touchpoint);
    let conversions = file.list(reader, "conversions", attribution::conversion);
    reader.scope = Scope::Leaf;
    let (lateness, retention) = horizons(reader, &file, &default, !conversions.is_empty());
    Definitions {
        version,
        sessions,
        lateness,
        retention,
        timezone: file.optional(reader, "timezone", settings::timezone).unwrap_or(default.timezone),
        identity: file.optional(reader, "identity", settings::identity).unwrap_or(default.identity),
        write_keys: file.optional(reader, "write_keys", settings::write_keys).unwrap_or_default(),
        privacy: file.optional(reader, "privacy", settings::privacy).unwrap_or_default(),
        schemas,
        touchpoints,
        conversions,
        attribution: file.optional(reader, "attribution", attribution::attribution).unwrap_or_default(),
        traits: judged(reader, &file, "traits", Judged::Trait, |reader, _, at| traits::computed_trait(reader, at)),
        segments: judged(reader, &file, "segments", Judged::Segment, |reader, _, at| segments::segment(reader, at)),
        journeys: judged(reader, &file, "journeys", Judged::Journey, journeys::journey),
        channels: file.section(reader, "channels", |reader, name, at| {
            reader.defined.channels.insert(name.into());
            channels::channel(reader, at)
        }),
        campaigns: file.section(reader, "campaigns", |reader, _, at| campaigns::campaign(reader, at)),
        order: Vec::new(),
    }
}

/// A section of things by name that others may depend on.
fn judged<T>(
    reader: &mut Reader,
    file: &Fields<'_>,
    key: &str,
    kind: impl Fn(String) -> Judged,
    read: impl Fn(&mut Reader, &str, &At<'_>) -> Option<T>,
) -> BTreeMap<String, T> {
    let things = file.section(reader, key, |reader, name, at| {
        let judged = kind(name.into());
        reader.defined.judged.insert(judged.clone(), at.place.clone());
        reader.scope = Scope::Judged(judged);
        read(reader, name, at)
    });
    reader.scope = Scope::Leaf;
    things
}

/// Lateness and retention, and the note of every default that may reach beyond a retention.
fn horizons(
    reader: &mut Reader,
    file: &Fields<'_>,
    default: &Definitions,
    converts: bool,
) -> (Option<Millis>, Option<Millis>) {
    let retention = file.optional(reader, "retention", |reader, at| settings::limit(reader, at, Reader::span));
    let lateness = file.optional(reader, "lateness", |reader, at| settings::limit(reader, at, Reader::span_or_zero));
    let lateness = lateness.unwrap_or(default.lateness);
    if let Some(at) = file.get("lateness").or(file.get("retention")) {
        let place = Place { path: "lateness".into(), ..at.place };
        reader.looks_back.push((place, lateness.unwrap_or(Millis::MAX)));
    }
    let lookback = file.get("attribution").is_some_and(|at| at.has("lookback"));
    if let (true, false, Some(at)) = (converts, lookback, file.get("retention")) {
        let place = Place { path: "attribution.lookback".into(), ..at.place };
        reader.looks_back.push((place, default.attribution.lookback));
    }
    (lateness, retention.unwrap_or(default.retention))
}
