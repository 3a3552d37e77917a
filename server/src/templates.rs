//! Messages: the templates of campaigns, checked before use and filled in at the send.

use std::collections::{BTreeMap, BTreeSet};

use dataflows::definitions::{Definitions, Problem, line_of, written};
use dataflows::profile::answers::{IntentRow, ProfileRow};
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, Value, context};

use crate::log::LogReader;
use crate::record;

/// What a template may speak of.
const ROOTS: [&str; 5] = ["data", "event", "profile", "recommend", "session"];

/// The templates of all campaigns.
#[derive(Debug)]
pub struct Templates {
    environment: Environment<'static>,
    data: BTreeMap<String, Value>,
    log: Option<LogReader>,
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

impl Templates {
    /// Compiles all templates of definitions without [`faults`].
    pub fn new(definitions: &Definitions) -> Templates {
        let (mut environment, mut data) = (environment(), BTreeMap::new());
        for (name, campaign) in &definitions.campaigns {
            if let Some(json) = &campaign.data {
                let json: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
                data.insert(name.clone(), Value::from(Serde(json)));
            }
            if let Some(template) = &campaign.template {
                let compiled = environment.add_template_owned(name.clone(), template.clone());
                compiled.expect("templates are looked into before they are used");
            }
        }
        Templates { environment, data, log: None }
    }

    /// Reads the bodies of events from this log.
    pub fn reading(self, log: LogReader) -> Self {
        Templates { log: Some(log), ..self }
    }

    /// The message of an intent; none if its campaign has no template.
    pub fn render(&self, row: &IntentRow, profile: &ProfileRow) -> Option<String> {
        let template = self.environment.get_template(&row.campaign).ok()?;
        let profile = serde_json::to_value(profile).expect("rows have string keys");
        let session = profile.get("session").cloned();
        let event = row.event.and_then(|position| self.event(position));
        let values = context! {
            data => self.data.get(row.campaign.as_str()),
            event => event.map(Serde),
            session => session.map(Serde),
            profile => Serde(profile),
        };
        // Nothing that a template may say can fail but what is too much of it.
        Some(template.render(values).unwrap_or_else(|error| format!("(the template failed: {error})")))
    }

    fn event(&self, position: u64) -> Option<serde_json::Value> {
        let record = self.log.as_ref()?.get(position).ok()??;
        let (kind, _, _, body) = record::decode_event(&record.payload)?;
        let mut event: serde_json::Value = serde_json::from_str(body).ok()?;
        // Where the path of the call names its type, the body need not.
        event["type"] = kind.name().into();
        Some(event)
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
