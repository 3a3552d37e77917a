//! Rows as JSON, in the shapes and the order of keys in which the contract shows them.

use std::collections::BTreeMap;

use dataflows::definitions::Definitions;
use dataflows::json::canonical;
use dataflows::profile::answers::{IntentRow, RootRow, Rows};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use utoipa::ToSchema;

/// An intent with what became of it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Intent<'a> {
    id: &'a str,
    campaign: &'a str,
    profile: &'a str,
    at: i64,
    not_before: i64,
    cause: Cause<'a>,
    channel: &'a str,
    /// The law's word, or the ledger's where it has one.
    pub status: &'a str,
    variant: Option<&'a str>,
    /// The message as it was sent.
    pub body: Option<&'a str>,
    /// The campaign's data, and what was recommended.
    pub data: Option<Box<RawValue>>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
struct Cause<'a> {
    kind: &'a str,
    root: &'a RootRow,
}

impl<'a> Intent<'a> {
    /// An intent by the law alone.
    pub fn new(row: &'a IntentRow, definitions: &'a Definitions) -> Self {
        let campaign = definitions.campaigns.get(row.campaign.as_str());
        let data = campaign.and_then(|campaign| campaign.data.as_deref()).and_then(|data| canonical(data).ok());
        Intent {
            id: &row.id,
            campaign: &row.campaign,
            profile: &row.profile,
            at: row.at,
            not_before: row.not_before,
            cause: Cause { kind: &row.kind, root: &row.root },
            channel: campaign.map_or("", |campaign| &campaign.channel),
            status: row.status.name(),
            variant: None,
            body: None,
            data: data.and_then(|data| RawValue::from_string(data).ok()),
        }
    }
}

/// A campaign's data with what is recommended.
pub fn recommending(data: Option<&str>, items: &[String]) -> Box<RawValue> {
    let data = data.and_then(|data| canonical(data).ok());
    let members = data.and_then(|data| serde_json::from_str(&data).ok());
    let mut members: BTreeMap<String, Box<RawValue>> = members.unwrap_or_default();
    members.insert("recommend".into(), to_raw_value(items).expect("texts are JSON"));
    to_raw_value(&members).expect("members have string keys")
}

/// Each row as one line of JSON, in the order given.
pub fn lines(rows: &Rows, definitions: &Definitions) -> Vec<String> {
    fn all<T: Serialize>(rows: &[T]) -> Vec<String> {
        rows.iter().map(|row| serde_json::to_string(row).expect("rows have string keys")).collect()
    }
    match rows {
        Rows::Profiles(rows) => all(rows),
        Rows::Events(rows) => all(rows),
        Rows::Sessions(rows) => all(rows),
        Rows::Touches(rows) => all(rows),
        Rows::Conversions(rows) => all(rows),
        Rows::Changes(rows) => all(rows),
        Rows::Credit(rows) => all(rows),
        Rows::Intents(rows) => all(&rows.iter().map(|row| Intent::new(row, definitions)).collect::<Vec<_>>()),
    }
}
