//! Campaigns: what is meant to be sent to whom and when, as far as the law says; sending is another matter.
//!
//! An intent goes through gates in order: audience and consent as of the item that caused it, then the cap, which is
//! judged when the instant is whole, since priority decides among the intents of one instant.

use ecow::EcoString;
use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::event::Event;
use crate::plan::{Cause, Plan};
use crate::time::Millis;
use crate::value::Value;

use super::{Instant, Root, Seen};

/// What the law says of an intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// To be sent.
    Due,
    /// Not of the audience.
    Audience,
    /// No consent.
    Consent,
    /// Enough was sent.
    Cap,
}

impl Status {
    /// All, in the order of the plan's counts.
    pub const ALL: [Status; 4] = [Status::Due, Status::Audience, Status::Consent, Status::Cap];

    /// The word used in answers.
    pub fn name(self) -> &'static str {
        match self {
            Status::Due => "due",
            Status::Audience => "audience",
            Status::Consent => "consent",
            Status::Cap => "cap",
        }
    }
}

/// Something to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Intent {
    /// The campaign, by number.
    pub campaign: usize,
    /// When it came about, ms.
    pub at: Millis,
    /// What it goes back to.
    pub root: Root,
    /// The event that matched, where one did.
    pub event: Option<Root>,
    /// What the gates say.
    pub status: Status,
    /// Not to be sent sooner, ms.
    pub not_before: Millis,
}

/// An intent with what it goes back to by name, since places in a history shift: as it leaves the profile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Meant {
    /// The intent.
    pub intent: Intent,
    /// The root's own id and message id; none: a schedule.
    pub root: Option<(EcoString, EcoString)>,
    /// The log position of the event that matched.
    pub event: Option<u64>,
}

impl Meant {
    /// An intent whose root and event stand in `entries`.
    pub fn new(intent: Intent, entries: &[Event]) -> Meant {
        let root = entries.get(intent.root.0 as usize).map(|event| (event.own.clone(), event.message_id.clone()));
        let event = intent.event.map(|event| entries[event.0 as usize].position);
        // Places differ between two runs over histories of different length; names do not.
        Meant { intent: Intent { root: Root::SCHEDULE, event: None, ..intent }, root, event }
    }
}

/// An intent before its gates.
pub(super) struct Candidate {
    campaign: usize,
    root: Root,
    event: Option<Root>,
    status: Status,
}

/// The id of an intent: `root` is the root event's own id and message id; of a schedule the public id and nothing.
pub fn intent_id(campaign: &str, root: (&str, &str), at: Millis) -> String {
    let mut hasher = Sha256::new();
    for part in ["intent", campaign, root.0, root.1] {
        hasher.update(part.as_bytes());
        hasher.update(b"\n");
    }
    hasher.update(at.to_string().as_bytes());
    let digest = hasher.finalize();
    let half = digest.first_chunk().expect("a digest of 32 bytes");
    format!("i_{:032x}", u128::from_be_bytes(*half))
}

impl Instant<'_> {
    /// Begins an intent; its first two gates are judged when the item is whole.
    pub(super) fn candidate(&mut self, campaign: usize, cause: Cause, root: Root, event: Option<Root>) {
        let of = &self.plan.campaigns[campaign];
        if of.cause == cause && self.state.is_seen(of.after) {
            self.candidates.push(Candidate { campaign, root, event, status: Status::Due });
        }
    }

    /// Campaigns that begin at an event.
    pub(super) fn event_campaigns(&mut self, seen: Seen<'_>) {
        let plan = self.plan;
        for campaign in &seen.rules.campaigns {
            if self.holds(plan.campaigns[*campaign].rule.as_ref(), seen) {
                self.candidate(*campaign, Cause::Event, seen.root, seen.kind.map(|_| seen.root));
            }
        }
    }

    /// The gates of audience and consent, as of the item that began these intents.
    pub(super) fn judge_audience(&mut self) {
        let state = &*self.state;
        for candidate in &mut self.candidates[self.judged..] {
            let campaign = &self.plan.campaigns[candidate.campaign];
            let inside = campaign.audience.is_none_or(|segment| state.is_member(segment));
            let consents = campaign.consent.as_ref().is_none_or(|purpose| state.consents(purpose));
            candidate.status = match (inside, consents) {
                (false, _) => Status::Audience,
                (true, false) => Status::Consent,
                (true, true) => Status::Due,
            };
        }
        self.judged = self.candidates.len();
    }

    /// (5) Scheduled campaigns of this instant, by name.
    pub(super) fn schedules(&mut self) {
        let plan = self.plan;
        if !self.state.core.exists() {
            return;
        }
        for (number, campaign) in plan.campaigns.iter().enumerate() {
            let Some(schedule) = &campaign.schedule else { continue };
            let due = schedule.after(self.at - 1) == self.at;
            if due && self.state.is_member(schedule.segment) {
                self.candidate(number, Cause::Schedule, Root::SCHEDULE, None);
                self.judge_audience();
            }
        }
    }

    pub(super) fn arm_schedules(&mut self) {
        let due = self.plan.campaigns.iter().filter_map(|campaign| campaign.schedule.as_ref());
        let next = due.map(|schedule| schedule.after(self.at - 1)).min().unwrap_or(Millis::MAX);
        self.due_by(next);
    }

    pub(super) fn schedule_due(&self) -> Millis {
        let due = self.plan.campaigns.iter().filter_map(|campaign| campaign.schedule.as_ref());
        due.map(|schedule| schedule.after(self.at)).min().unwrap_or(Millis::MAX)
    }

    /// The cap: over the instant's intents by priority, campaign and id.
    pub(super) fn gates(&mut self) {
        if self.candidates.is_empty() {
            return;
        }
        let plan = self.plan;
        let mut candidates = std::mem::take(&mut self.candidates);
        let mut seen = Vec::with_capacity(candidates.len());
        candidates.retain(|candidate| {
            let new = !seen.contains(&(candidate.campaign, candidate.root));
            seen.push((candidate.campaign, candidate.root));
            new
        });
        if candidates.len() > 1 {
            candidates.sort_by_cached_key(|candidate| {
                let campaign = &plan.campaigns[candidate.campaign];
                (-campaign.priority, candidate.campaign, self.id_of(candidate))
            });
        }
        for candidate in candidates {
            self.pass(&candidate);
        }
    }

    fn id_of(&self, candidate: &Candidate) -> String {
        let root = self.entries.get(candidate.root.0 as usize);
        let root = root.map_or(("", ""), |event| (event.own.as_str(), event.message_id.as_str()));
        intent_id(&self.plan.campaigns[candidate.campaign].name, root, self.at)
    }

    fn pass(&mut self, candidate: &Candidate) {
        let campaign = &self.plan.campaigns[candidate.campaign];
        let mut status = candidate.status;
        if let (Status::Due, Some((at_most, per, counted))) = (status, &campaign.cap) {
            let recent = self.state.tapes.intents.iter().rev().take_while(|intent| intent.at > self.at - per);
            let passed = recent.filter(|intent| intent.status == Status::Due && counted.contains(&intent.campaign));
            if passed.count() as u64 >= *at_most {
                status = Status::Cap;
            }
        }
        let intent = Intent {
            campaign: candidate.campaign,
            at: self.at,
            root: candidate.root,
            event: candidate.event,
            status,
            not_before: self.not_before(campaign),
        };
        self.effects.counts[campaign.totals[status as usize]] += 1;
        self.effects.intents.push((Meant::new(intent, self.entries), 1));
        self.state.tapes.intents.push(intent);
    }

    /// Not sooner than the hold, and not in quiet hours.
    fn not_before(&self, campaign: &crate::plan::CampaignPlan) -> Millis {
        let held = self.at + campaign.hold;
        let Some((from, to)) = campaign.quiet_hours else { return held };
        let told = match self.state.told("timezone", &[]) {
            Some(Value::Text(zone)) => Some(zone.as_str()),
            _ => None,
        };
        let names = [told, self.state.timezone(), Some(&self.plan.definitions.timezone)];
        let zone = names.into_iter().flatten().find_map(zone).unwrap_or(TimeZone::UTC);
        end_of_quiet(held, from, to, &zone).unwrap_or(held)
    }
}

/// A time zone by its IANA name, or as an offset such as `+02:00`; a name that names none is passed over.
fn zone(name: &str) -> Option<TimeZone> {
    TimeZone::get(name).ok().or_else(|| {
        let (sign, rest) = (name.get(..1)?, name.get(1..)?);
        let (hours, minutes) = rest.split_once(':')?;
        let seconds = hours.parse::<i32>().ok()? * 3_600 + minutes.parse::<i32>().ok()? * 60;
        let seconds = if sign == "-" { -seconds } else { Some(seconds).filter(|_| sign == "+")? };
        Some(TimeZone::fixed(Offset::from_seconds(seconds).ok()?))
    })
}

/// The first end of quiet hours after an instant inside them; from after to goes over midnight. Minutes of the day.
fn end_of_quiet(at: Millis, from: u16, to: u16, zone: &TimeZone) -> Option<Millis> {
    let local = Timestamp::from_millisecond(at).ok()?.to_zoned(zone.clone());
    let minute = local.hour() as u16 * 60 + local.minute() as u16;
    let quiet = if from < to { (from..to).contains(&minute) } else { minute >= from || minute < to };
    if !quiet {
        return None;
    }
    let day = if minute < to { local.date() } else { local.date().tomorrow().ok()? };
    let end = zone.to_ambiguous_timestamp(day.at((to / 60) as i8, (to % 60) as i8, 0, 0));
    // An end that a clock change leaves out is the later instant, one that comes twice the first after.
    let first = end.compatible().ok()?.as_millisecond();
    if first > at { Some(first) } else { Some(end.later().ok()?.as_millisecond()) }
}

impl Plan {
    /// The number of a campaign.
    pub fn campaign(&self, name: &str) -> Option<usize> {
        self.campaigns.iter().position(|campaign| campaign.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_published_ones() {
        let id = intent_id("come_back", ("user-0000042", "e000000017"), 1767240000000);
        assert_eq!(id, "i_441d91dd2b3a37b2f7c125b0f90a8f56");
    }

    #[test]
    fn quiet_hours_end_in_the_persons_own_time() {
        let at = |text: &str| crate::time::parse_instant(text).unwrap();
        let end = |text: &str, name: &str| end_of_quiet(at(text), 22 * 60, 8 * 60, &zone(name).unwrap());
        assert_eq!(end("2026-01-05T21:59:59.999Z", "UTC"), None);
        assert_eq!(end("2026-01-05T22:00:00Z", "UTC"), Some(at("2026-01-06T08:00:00Z")));
        assert_eq!(end("2026-01-06T07:59:59.999Z", "UTC"), Some(at("2026-01-06T08:00:00Z")));
        assert_eq!(end("2026-01-05T20:30:00Z", "+02:00"), Some(at("2026-01-06T06:00:00Z")));
        assert_eq!(end("2026-01-05T21:30:00Z", "Europe/Berlin"), Some(at("2026-01-06T07:00:00Z")));
        // The end falls into the hour that the change to summer time leaves out: the later instant.
        let spring = end_of_quiet(at("2026-03-29T00:30:00Z"), 60, 150, &zone("Europe/Berlin").unwrap());
        assert_eq!(spring, Some(at("2026-03-29T01:30:00Z")));
        // It comes twice where winter time begins: the first, and in the hour that is had again the second.
        let autumn = |text: &str| end_of_quiet(at(text), 22 * 60, 150, &zone("Europe/Berlin").unwrap());
        assert_eq!(autumn("2026-10-25T00:15:00Z"), Some(at("2026-10-25T00:30:00Z")));
        assert_eq!(autumn("2026-10-25T00:30:00Z"), None);
        assert_eq!(autumn("2026-10-25T01:15:00Z"), Some(at("2026-10-25T01:30:00Z")));
        assert!(zone("Nowhere/Land").is_none() && zone("é").is_none());
    }
}
