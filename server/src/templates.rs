//! Messages: the templates of campaigns, checked before use and filled in at the send.

use std::collections::{BTreeMap, BTreeSet};

use dataflows::definitions::{Definitions, Problem, line_of, written};
use dataflows::event::Kind;
use dataflows::profile::answers::{IntentRow, ProfileRow};
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, Value, context};

use crate::log::OwnedRecord;
use crate::recommend::recommend;
use crate::record;

/// What a template may speak of.
const ROOTS: [&str; 5] = ["data", "event", "profile", "recommend", "session"];

/// The templates of all campaigns.
#[derive(Debug)]
pub struct Templates {
    environment: Environment<'static>,
    data: BTreeMap<String, Value>,
    /// Campaigns whose templates may speak of the event that matched.
    of_events: BTreeSet<String>,
    /// The events that are conversions.
    conversions: BTreeSet<String>,
}

/// An event of a person, as it came.
struct Past {
    kind: Kind,
    timestamp: i64,
    message_id: String,
    body: serde_json::Value,
}

/// What is wrong with the templates of a definitions file, whatever else is wrong with it.
pub fn faults(text: &str) -> Vec<Problem> {
    #[derive(serde::Deserialize)]
    struct Campaign {
        template: String,
    }
    let mut faults = Vec::new();
    for (name, campaign) in written(text, "campaigns") {
        let Ok(Campaign { template }) = serde_json::from_str(&campaign) else { continue };
        let mut environment = environment();
        let wrong = match environment.add_template_owned(name.clone(), template) {
            Err(error) => Some(format!("the template is wrong: {error}")),
            Ok(()) => unknown(&environment, &name),
        };
        if let Some(message) = wrong {
            let path = format!("campaigns.{name}.template");
            faults.push(Problem { line: line_of(text, &path).unwrap_or(0), path, message, nearest: None });
        }
    }
    faults
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    // An absent value is empty text, however deep it is sought.
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    environment
}

/// A value as templates see it: null is absent.
fn told(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::UNDEFINED,
        serde_json::Value::Array(items) => items.into_iter().map(told).collect(),
        serde_json::Value::Object(members) => {
            Value::from_pairs(members.into_iter().map(|(key, member)| (key, told(member))))
        }
        scalar => Value::from(Serde(scalar)),
    }
}

impl Templates {
    /// Compiles all templates of definitions without [`faults`].
    pub fn new(definitions: &Definitions) -> Templates {
        let (mut environment, mut data, mut of_events) = (environment(), BTreeMap::new(), BTreeSet::new());
        for (name, campaign) in &definitions.campaigns {
            if let Some(json) = &campaign.data {
                let json: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
                data.insert(name.clone(), told(json));
            }
            if let Some(template) = &campaign.template {
                let compiled = environment.add_template_owned(name.clone(), template.clone());
                compiled.expect("templates are looked into before they are used");
                // Through another template too.
                if ["event", "extends", "import", "include"].iter().any(|word| template.contains(word)) {
                    of_events.insert(name.clone());
                }
            }
        }
        let conversions = definitions.conversions.iter().map(|conversion| conversion.event.clone()).collect();
        Templates { environment, data, of_events, conversions }
    }

    /// Whether a campaign's message needs the record of the event that matched.
    pub fn reads_event(&self, campaign: &str) -> bool {
        self.of_events.contains(campaign)
    }

    /// What messages speak of an event: keys from the top of a call, two at most; none in one: of all of it.
    pub fn of_events(&self) -> BTreeSet<Vec<String>> {
        let spoken = self.environment.templates().flat_map(|(_, template)| template.undeclared_variables(true));
        let paths = spoken.map(|path| path.split('.').map(str::to_owned).collect::<Vec<_>>());
        let of_events = paths.filter(|path| path[0] == "event");
        of_events.map(|path| path.into_iter().skip(1).take(2).collect()).collect()
    }

    /// So many items to recommend with an intent. `events` are the records of its profile's events, newest first: those
    /// up to its root count, and where that is not among them those up to its instant.
    pub fn recommend(&self, row: &IntentRow, events: &[OwnedRecord], items: usize) -> Vec<String> {
        let past: Vec<Past> = events.iter().filter_map(Past::of).collect();
        let is_root =
            |past: &Past| past.message_id == row.root.message_id && past.own() == Some(row.root.id.to_string());
        let in_time = |past: &Past| past.timestamp <= row.at;
        let last = past.iter().position(is_root).or_else(|| past.iter().position(in_time)).unwrap_or(past.len());
        let tracked = past[last..].iter().filter(|past| past.kind == Kind::Track);
        recommend(tracked.map(|past| &past.body), &self.conversions, items)
    }

    /// The message of an intent, with the record of the event that matched, where one did; none if its campaign has no
    /// template.
    pub fn render(
        &self,
        row: &IntentRow,
        event: Option<&OwnedRecord>,
        profile: &ProfileRow,
        recommended: Option<&[String]>,
    ) -> Option<String> {
        let template = self.environment.get_template(&row.campaign).ok()?;
        let profile = serde_json::to_value(profile).expect("rows have string keys");
        let session = profile.get("session").cloned();
        let event = event.and_then(Past::of).map(|past| past.body);
        let values = context! {
            data => self.data.get(row.campaign.as_str()).cloned().unwrap_or(Value::UNDEFINED),
            event => told(event.into()),
            session => told(session.into()),
            recommend => recommended.map_or(Value::UNDEFINED, |items| items.iter().cloned().collect()),
            profile => told(profile),
        };
        // Nothing that a template may say can fail but what is too much of it.
        Some(template.render(values).unwrap_or_else(|error| format!("(the template failed: {error})")))
    }
}

impl Past {
    fn of(record: &OwnedRecord) -> Option<Past> {
        let (kind, timestamp, message_id, body) = record::decode_event(&record.payload)?;
        let mut body: serde_json::Value = serde_json::from_str(body).ok()?;
        // Where the path of the call names its type, the body need not.
        body["type"] = kind.name().into();
        Some(Past { kind, timestamp, message_id: message_id.to_owned(), body })
    }

    /// The id it belongs to.
    fn own(&self) -> Option<String> {
        ["userId", "anonymousId"].iter().find_map(|key| match &self.body[*key] {
            serde_json::Value::String(id) if !id.is_empty() => Some(id.clone()),
            serde_json::Value::Number(id) => Some(id.to_string()),
            _ => None,
        })
    }
}

/// What a template speaks of that nobody tells it.
fn unknown(environment: &Environment<'_>, name: &str) -> Option<String> {
    let template = environment.get_template(name).ok()?;
    let roots: BTreeSet<String> = template.undeclared_variables(false).into_iter().collect();
    let unknown: Vec<String> = roots.into_iter().filter(|root| !ROOTS.contains(&root.as_str())).collect();
    (!unknown.is_empty())
        .then(|| format!("the template speaks of {}; it may speak of {}", unknown.join(", "), ROOTS.join(", ")))
}
