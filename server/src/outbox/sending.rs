//! Sending: what becomes of an intent that stands, and what is done when its time has come.

use std::collections::HashMap;
use std::sync::Arc;

use dataflows::definitions::{Deliver, Recommend};
use dataflows::profile::answers::{IntentRow, Page, ProfileRow, Rows, View};
use dataflows::protocol::{Answer, Question};
use dataflows::time::{HOUR, MINUTE, Millis};
use ecow::EcoString;
use tokio::task::JoinSet;

use super::ledger::State;
use super::{BUSY, Entry, Fate, Outbox, message};
use crate::hub::AsOf;
use crate::log::OwnedRecord;
use crate::record::{Dispatch, Trigger};
use crate::rows::recommending;
use crate::triggers::{Outlet, Parcel};

/// How old an intent may be when it is sent, where its campaign does not say.
const EXPIRES: Millis = HOUR;
const EXPIRES_REALTIME: Millis = MINUTE;
/// The latest events of a person that a recommendation looks at: a message cannot wait for all of a long life.
const EVENTS_READ_MAX: usize = 1_000;
/// Intents that are prepared and written down together, at most: those after them wait so long and no longer.
const SENT_TOGETHER_MAX: usize = 1_000;

impl Outbox {
    /// What becomes of an intent that stands.
    pub(super) fn judge(&self, state: &State, row: IntentRow, clock: Millis) -> Entry {
        if let Some(dispatch) = state.ledger.get(&row.id) {
            let fate = match (dispatch.status, &dispatch.trigger) {
                // It stands again: what was sent counts as sent.
                (Fate::Revoked, Some(Trigger::Parked(..))) => Fate::Parked,
                (Fate::Revoked, _) => Fate::Sent,
                (Fate::Sent, _) if state.entries.get(&row.id).is_some_and(|old| old.fate == Fate::Failed) => {
                    Fate::Failed
                }
                (status, _) => status,
            };
            return Entry { row, fate, body: dispatch.body.clone(), data: dispatch.data.clone() };
        }
        let fate = if row.at <= self.hub.book().active_since(&row.campaign) {
            Fate::History
        } else if clock > row.not_before.max(row.at) + self.expires(&row) {
            Fate::Expired
        } else {
            Fate::Waiting
        };
        Entry { row, fate, body: None, data: None }
    }

    /// How old an intent may be when it is sent.
    fn expires(&self, row: &IntentRow) -> Millis {
        let definitions = &self.hub.book().plan.definitions;
        let Some(campaign) = definitions.campaigns.get(row.campaign.as_str()) else { return EXPIRES };
        let channel = &definitions.channels[&campaign.channel];
        let pops_up = channel.realtime && channel.deliver == Deliver::Sse;
        campaign.expires.unwrap_or(if pops_up { EXPIRES_REALTIME } else { EXPIRES })
    }

    /// Sends intents that are due, to people that are known or asked about: what is prepared together is written down
    /// together, and then told, or carried.
    pub(super) async fn send(&self, due: Vec<String>, people: Vec<ProfileRow>, as_of: AsOf) -> Vec<(i8, Entry)> {
        let mut changed = Vec::new();
        let people: HashMap<EcoString, ProfileRow> =
            people.into_iter().map(|person| (person.id.clone(), person)).collect();
        for ids in due.chunks(SENT_TOGETHER_MAX) {
            let prepared = self.prepare_all(ids, &people).await;
            let dispatch = |(_, new): &(Entry, Entry)| {
                let trigger = self.is_carried(new).then(|| Trigger::Pending(message(self, new).to_string()));
                Dispatch { trigger, ..Dispatch::new(new.clone(), as_of) }
            };
            // Not written down, so not sent: their turn comes again at the next start.
            let Some(durable) = self.write_down(prepared.iter().map(dispatch).collect()).await else { break };
            for (old, new) in prepared {
                self.lock().entries.insert(new.row.id.clone(), new.clone());
                if let Some((outlet, _)) = self.channel(&new.row) {
                    if self.is_carried(&new) {
                        outlet.order(&new.row.id);
                    } else if new.fate == Fate::Sent {
                        outlet.delivered(durable.clock - new.row.not_before);
                    }
                }
                changed.extend([(-1, old), (1, new)]);
            }
        }
        changed
    }

    /// Intents that wait, in their order, and what becomes of each now that it is due.
    async fn prepare_all(&self, ids: &[String], people: &HashMap<EcoString, ProfileRow>) -> Vec<(Entry, Entry)> {
        let (mut prepared, mut asking) = (Vec::new(), JoinSet::new());
        for (place, id) in ids.iter().enumerate() {
            let Some(old) = self.entry(id).filter(|entry| entry.fate == Fate::Waiting) else { continue };
            match people.get(&old.row.profile).filter(|_| !self.recommends(&old.row)) {
                Some(person) => prepared.push((place, self.prepare(old, person, &[]).await)),
                None => {
                    let outbox = self.clone();
                    asking.spawn(async move { (place, outbox.ask_and_prepare(old).await) });
                }
            }
        }
        prepared.append(&mut asking.join_all().await);
        prepared.sort_by_key(|(place, _)| *place);
        prepared.into_iter().filter_map(|(_, entries)| entries).collect()
    }

    /// Whether somebody has to carry what was sent.
    fn is_carried(&self, entry: &Entry) -> bool {
        let carries = |(outlet, _): (Arc<Outlet>, bool)| outlet.carries();
        entry.fate == Fate::Sent && self.channel(&entry.row).is_some_and(carries)
    }

    /// Whether what is sent with an intent has to be looked for among its profile's events.
    fn recommends(&self, row: &IntentRow) -> bool {
        let definitions = &self.hub.book().plan.definitions;
        definitions.campaigns.get(row.campaign.as_str()).is_some_and(|campaign| campaign.recommend.is_some())
    }

    /// Prepares an intent whose profile is not at hand; if the engine cannot be asked now, its turn comes again.
    async fn ask_and_prepare(&self, old: Entry) -> Option<(Entry, Entry)> {
        let Some((profile, events)) = self.person(&old.row, self.recommends(&old.row)).await else {
            self.lock().waiting.insert((old.row.not_before, old.row.id));
            return None;
        };
        self.prepare(old, &profile, &events).await
    }

    /// An intent that waits, and what becomes of it now that it is due: looks for consent again, and fixes the message.
    async fn prepare(&self, old: Entry, profile: &ProfileRow, events: &[OwnedRecord]) -> Option<(Entry, Entry)> {
        let book = self.hub.book();
        let campaign = book.plan.definitions.campaigns.get(old.row.campaign.as_str())?;
        let consents = campaign.consent.as_ref().is_none_or(|purpose| profile.consents(purpose));
        let mut new = Entry { row: old.row.clone(), fate: Fate::ConsentWithdrawn, body: None, data: None };
        if consents {
            let recommend = |of: &Recommend| book.templates.recommend(&old.row, events, of.items as usize);
            let recommended = campaign.recommend.as_ref().map(recommend);
            let recommended = recommended.as_deref();
            let event = match (&self.records, old.row.event) {
                (Some(records), Some(place)) if book.templates.reads_event(&old.row.campaign) => {
                    records.one(place).await
                }
                _ => None,
            };
            new.fate = Fate::Sent;
            new.body = book.templates.render(&old.row, event.as_ref(), profile, recommended);
            new.data = recommended.map(|items| recommending(campaign.data.as_deref(), items));
        }
        Some((old, new))
    }

    /// The profile of an intent, and its latest events, newest first, if they are wanted; none if the engine cannot be
    /// asked now.
    async fn person(&self, row: &IntentRow, wants_events: bool) -> Option<(Box<ProfileRow>, Vec<OwnedRecord>)> {
        let id = &row.profile;
        let profile =
            self.hub.ask(Question::Profile(id.clone())).await.ok()?.parts.into_iter().find_map(|part| match part {
                Answer::Profile(profile) => Some(profile),
                _ => None,
            })?;
        let Some(records) = self.records.as_ref().filter(|_| wants_events) else {
            return Some((profile, Vec::new()));
        };
        let page = Page { before: None, limit: EVENTS_READ_MAX };
        let question = Question::History { id: id.clone(), view: View::Events, page };
        let events = self.hub.ask(question).await.ok()?.parts.into_iter().find_map(|part| match part {
            Answer::History(Rows::Events(events), _) => Some(events),
            _ => None,
        })?;
        let places: Vec<u64> = events.into_iter().map(|(.., place)| place).collect();
        Some((profile, records.get(&places).await.into_iter().flatten().collect()))
    }

    /// What is pending of an intent, if anything is.
    pub(crate) fn parcel(&self, id: &str) -> Option<Parcel> {
        let clock = self.hub.clock();
        let state = self.lock();
        let (dispatch, entry) = (state.ledger.get(id)?, state.entries.get(id)?);
        let revokes = entry.fate == Fate::Revoked;
        let Some(Trigger::Pending(body)) = dispatch.of(revokes) else { return None };
        let stale = !revokes && clock > dispatch.at + self.expires(&entry.row);
        Some(Parcel { id: id.to_owned(), campaign: entry.row.campaign.to_string(), revokes, body: body.clone(), stale })
    }

    /// Whether the person consents, at the latest that is known, to what an intent is for.
    pub(crate) async fn consents(&self, id: &str) -> bool {
        let Some(Entry { row, .. }) = self.entry(id) else { return false };
        let book = self.hub.book();
        let campaign = book.plan.definitions.campaigns.get(row.campaign.as_str());
        let Some(purpose) = campaign.and_then(|campaign| campaign.consent.as_ref()) else { return true };
        loop {
            let Ok(answered) = self.hub.ask(Question::Profile(row.profile.clone())).await else {
                tokio::time::sleep(BUSY).await;
                continue;
            };
            let yes = |part: &Answer| matches!(part, Answer::Profile(profile) if profile.consents(purpose));
            return answered.parts.iter().any(yes);
        }
    }
}
