//! The rows that the model prints: one JSON line each, keys in the order of the contract.

use super::attribution::Credit;
use super::definitions::Definitions;
use super::identity::Person;
use super::json::{Json, array, object, quote, quote_or_null};
use super::number::decimal;
use super::story::{Change, Intent, Move, Stay, Story};
use super::value::Value;
use super::views::{self, Happening, Now, Root, Session};

/// Every view as sorted NDJSON lines, and what else is counted.
#[derive(Debug, Default, PartialEq)]
pub struct Dump {
    pub profiles: Vec<String>,
    pub sessions: Vec<String>,
    pub segment_changes: Vec<String>,
    pub intents: Vec<String>,
    pub credit: Vec<String>,
    /// What is told of links.
    pub links: Vec<String>,
    /// Every move of a journey, which no row tells.
    pub moves: Vec<Move>,
}

impl Dump {
    pub fn sort(&mut self) {
        for view in [&mut self.profiles, &mut self.sessions, &mut self.segment_changes, &mut self.intents] {
            view.sort();
        }
        self.credit.sort();
        self.moves.sort();
    }
}

/// Money and credit are decimal strings.
pub fn money(value: i128, places: usize) -> String {
    quote(&decimal(value, places))
}

fn root(root: &Root) -> String {
    object(&[("id", quote(&root.id)), ("messageId", quote(&root.message_id))])
}

pub fn profile(story: &Story, person: &Person, now: &Now, clock: i64) -> String {
    let ids: Vec<String> = person.ids.iter().map(|id| id_row(id, person.known.contains(id))).collect();
    let visitor = views::visitor(&story.past, &now.sessions, &now.conversions);
    let visitor: Vec<String> = visitor.into_iter().map(quote).collect();
    let segments: Vec<String> = story.members.iter().map(|(name, since)| segment_row(name, *since)).collect();
    let open = now.sessions.last().filter(|session| !is_closed(session, story.definitions, clock));
    object(&[
        ("id", quote(&person.public_id)),
        ("ids", array(&ids)),
        ("visitor", array(&visitor)),
        ("first_seen", person.events[0].at.to_string()),
        ("last_seen", person.events[person.events.len() - 1].at.to_string()),
        ("traits", Json::Map(now.told.clone()).print()),
        ("computed", map(now.computed.iter().map(|(name, value)| (name, value.print())))),
        ("segments", array(&segments)),
        ("journeys", map(story.stays.iter().map(|(name, stay)| (name, journey(story.definitions, name, stay))))),
        ("consent", map(views::consent(&story.past).iter().map(|(purpose, answer)| (purpose, consent_row(*answer))))),
        ("session", open.map_or("null".to_string(), |open| session(story, open, clock))),
    ])
}

fn map<'a>(members: impl Iterator<Item = (&'a String, String)>) -> String {
    let members: Vec<(&str, String)> = members.map(|(name, value)| (name.as_str(), value)).collect();
    object(&members)
}

fn id_row(id: &str, known: bool) -> String {
    object(&[("id", quote(id)), ("known", known.to_string())])
}

fn segment_row(name: &str, since: i64) -> String {
    object(&[("name", quote(name)), ("since", since.to_string())])
}

fn consent_row((granted, since): (bool, i64)) -> String {
    object(&[("granted", granted.to_string()), ("since", since.to_string())])
}

fn journey(definitions: &Definitions, name: &str, stay: &Stay) -> String {
    let timers = &definitions.journeys[name].states[&stay.state].timers;
    let mut armed: Vec<_> = stay.timers.iter().zip(timers).filter_map(|(a, t)| a.as_ref().map(|a| (a.at, t))).collect();
    armed.sort_by_key(|(at, _)| *at);
    let deadline = |(at, timer): &(i64, &super::definitions::Timer)| {
        object(&[
            ("at", at.to_string()),
            ("emit", quote_or_null(timer.emit.as_deref())),
            ("to", quote_or_null(timer.to.as_deref())),
        ])
    };
    let deadlines: Vec<String> = armed.iter().map(deadline).collect();
    object(&[("state", quote(&stay.state)), ("since", stay.since.to_string()), ("deadlines", array(&deadlines))])
}

fn is_closed(session: &Session, definitions: &Definitions, clock: i64) -> bool {
    clock > session.end + definitions.gap
}

pub fn session(story: &Story, session: &Session, clock: i64) -> String {
    let events: Vec<&Happening> = session.events.iter().map(|event| &story.past[*event]).collect();
    let touch = events.iter().find_map(|h| h.touch.as_ref());
    let buying = |h: &&Happening| story.definitions.buying.iter().any(|name| h.is_named(name));
    let buys = session.conversions > 0 || events.iter().any(buying);
    object(&[
        ("profile", quote(&story.public_id)),
        ("id", session.start.to_string()),
        ("start", session.start.to_string()),
        ("end", session.end.to_string()),
        ("events", events.len().to_string()),
        ("entry_page", quote_or_null(events.iter().find_map(|h| page(h)))),
        ("exit_page", quote_or_null(events.iter().rev().find_map(|h| page(h)))),
        ("device", device(story.definitions, &events)),
        ("channel", quote_or_null(touch.map(|t| t.channel.as_str()))),
        ("campaign", quote_or_null(touch.map(|t| t.campaign.as_str()))),
        ("conversions", session.conversions.to_string()),
        ("value", money(session.value, 6)),
        ("purpose", quote(if buys { "buying" } else { "browsing" })),
        ("closed", is_closed(session, story.definitions, clock).to_string()),
    ])
}

/// The page of an event: the first present of four places.
fn page<'a>(happening: &'a Happening) -> Option<&'a str> {
    let record = happening.record?;
    let path = record.context.get("page").get("path").text();
    let own = record.properties.get("page").text().or(record.properties.get("path").text());
    own.or(path).or(record.name.as_deref())
}

/// Each part from the first event of the session that has it: in its context, else by its user agent.
fn device(definitions: &Definitions, events: &[&Happening]) -> String {
    let agent = |h: &Happening| h.context().get("userAgent").text().and_then(|text| definitions.agents.get(text));
    let part = |place: usize, outer: &str, inner: &str| {
        let told = |h: &&Happening| {
            let own = h.context().get(outer).get(inner).text().map(str::to_string);
            own.or_else(|| agent(h).map(|parts| parts[place].clone()))
        };
        quote_or_null(events.iter().find_map(told).as_deref())
    };
    object(&[("type", part(0, "device", "type")), ("os", part(1, "os", "name")), ("browser", part(2, "", ""))])
}

pub fn change(public_id: &str, change: &Change) -> String {
    object(&[
        ("profile", quote(public_id)),
        ("segment", quote(&change.segment)),
        ("change", quote(if change.entered { "entered" } else { "exited" })),
        ("at", change.at.to_string()),
        ("root", root(&change.root)),
    ])
}

pub fn intent(story: &Story, intent: &Intent) -> String {
    let campaign = &story.definitions.campaigns[&intent.campaign];
    object(&[
        ("id", quote(&intent.id)),
        ("campaign", quote(&intent.campaign)),
        ("profile", quote(&story.public_id)),
        ("at", intent.at.to_string()),
        ("not_before", intent.not_before.to_string()),
        ("cause", object(&[("kind", quote(intent.kind)), ("root", root(&intent.root))])),
        ("channel", quote_or_null(campaign.channel.as_deref())),
        ("status", quote(intent.status)),
        ("variant", "null".to_string()),
        ("body", "null".to_string()),
        ("data", campaign.data.print()),
    ])
}

pub fn credit(public_id: &str, credit: &Credit) -> String {
    let dated = |root: &Root, at: i64| {
        vec![("id", quote(&root.id)), ("messageId", quote(&root.message_id)), ("at", at.to_string())]
    };
    let mut conversion = vec![("name", quote(&credit.conversion))];
    conversion.extend(dated(&credit.conversion_root, credit.conversion_at));
    let touch = credit.touch.as_ref().map(|(root, at)| object(&dated(root, *at)));
    object(&[
        ("model", quote(credit.model)),
        ("profile", quote(public_id)),
        ("conversion", object(&conversion)),
        ("touch", touch.unwrap_or("null".to_string())),
        ("channel", quote(&credit.channel)),
        ("campaign", quote(&credit.campaign)),
        ("conversions", money(credit.conversions, 9)),
        ("value", money(credit.value, 9)),
    ])
}

/// A plain count as JSON.
pub fn count(n: usize) -> String {
    Value::whole(n).print()
}
