//! Messages: the templates of campaigns, checked before use and filled in at the send.

use std::collections::BTreeSet;

use dataflows::definitions::{Definitions, Problem, line_of};
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
    data: std::collections::BTreeMap<String, Value>,
    log: Option<LogReader>,
}

impl Templates {
    /// Compiles all templates; says of each that is wrong where it stands in `text` and what is wrong.
    pub fn new(definitions: &Definitions, text: &str) -> Result<Templates, Vec<Problem>> {
        let mut environment = Environment::new();
        // An absent value is empty text, however deep it is sought.
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        let (mut problems, mut data) = (Vec::new(), std::collections::BTreeMap::new());
        for (name, campaign) in &definitions.campaigns {
            if let Some(json) = &campaign.data {
                data.insert(
                    name.clone(),
                    Value::from(Serde(serde_json::from_str::<serde_json::Value>(json).unwrap_or_default())),
                );
            }
            let Some(template) = &campaign.template else { continue };
            let wrong = match environment.add_template_owned(name.clone(), template.clone()) {
                Err(error) => Some(format!("the template is wrong: {error}")),
                Ok(()) => unknown(&environment, name),
            };
            if let Some(message) = wrong {
                let path = format!("campaigns.{name}.template");
                problems.push(Problem { line: line_of(text, &path).unwrap_or(0), path, message, nearest: None });
            }
        }
        if problems.is_empty() { Ok(Templates { environment, data, log: None }) } else { Err(problems) }
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
        let (_, _, _, body) = record::decode_event(&record.payload)?;
        serde_json::from_str(body).ok()
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
