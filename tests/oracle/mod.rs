//! The reference model: what every answer must be, recomputed from scratch from the list of accepted records.
//!
//! It is meant to be slow, plain and right. It shares no code with the engine. It does not know experiments, the
//! models markov, shapley and incremental, metrics, funnels, rendering, pseudonyms, or time zones that need a table.
//!
//! # What it decides where the rules are silent
//!
//! Records
//!  1. `timestamp`, else `originalTimestamp`, is the event's time; with neither the line is invalid. A time is an
//!     RFC 3339 string or a number written as a whole one; second 60 is invalid.
//!  2. "Original timestamp" in the comparison of duplicates: `originalTimestamp`, else `timestamp`, as the JSON value
//!     it is: one instant written in two ways is a conflict. At the top level null is absent; `{}` is not.
//!  3. Numbers in that comparison are equal by their exact decimal value; of a repeated key the last stands.
//!  4. Invalid besides: track without a non-empty string `event`; `properties`, `traits`, `context` that are no
//!     objects; a `messageId` that is no string or too long; whatever breaks `schemas`. An empty `messageId` is
//!     missing.
//!  5. An integer id is one written as such (`7`, not `7.0`).
//!  6. identify, group and alias have no event name; the `event` of a page or screen call is ignored.
//!  7. A clock line may carry any integer. A control line that cannot be read has no effect, nor has a retraction of a
//!     record that was not yet accepted. Control lines and blank lines are not `read`.
//!  8. In the report refused edges are in `accepted` and in `rejected`; erasing does not lower `accepted`.
//!
//! Identity
//!  9. A refused event counts as if it did not link: it makes neither of its edges, and is no minimum.
//! 10. An edge is refused if it joins two ids that were apart and the component they are then in (a displaced link
//!     being gone) is larger than `max_ids`.
//! 11. An event with the same string in both fields is no candidate for the earliest; nor is an unlinked pair.
//! 12. An alias without a `userId` or `previousId` is valid and makes no edge. `groupId` is no id of a person.
//! 13. Erasing strikes every text that is one of the ids out of the records of others that came before it, whatever
//!     their date, and out of those that come later and are dated up to it: it is null then, in a list too. Names of
//!     members and events stay, and so does what duplicates are told by. Unlinked pairs with one of the ids are
//!     forgotten. Erasing an id that is nobody's has no effect.
//! 14. Consent is kept per purpose: a later call that does not name the purpose leaves it; non-booleans are ignored.
//!
//! Sessions and values
//! 15. Pages and the parts of a device are strings, each from the first event that has it: type and OS as the context
//!     has them, else, like the browser, as the user agent tells. What agents tell the model is told.
//! 16. A number out of range is present for `has`, unequal to everything, and skipped by computed traits.
//! 17. Comparisons are between scalars; lists and objects equal nothing. `traits.` is what the profile was told as of
//!     the event. A computed trait hides a told one of its name even when it is null.
//! 18. `unique: day` counts UTC days of session starts.
//! 19. An identify call whose `traits` are absent or empty has those of `context.traits`, also in the comparison of
//!     duplicates. Told traits and `data` print canonically: keys by bytes, numbers exact and plain.
//!
//! Definitions added under a retention
//! 32. A definition with a horizon counts events, also emitted ones, that are later than it. Segments, journeys and
//!     campaigns know nobody before the first accepted event that they see: a journey starts there, a segment is judged
//!     from there on. Deadlines have no anchor up to the horizon.
//! 33. What is no definition of its own is whole: told traits, consent, ids, sessions, and so what reads them. What one
//!     definition reads of another is what that one says.
//!
//! Windows and sequences
//! 20. For the root of a window item these leave a window: the events that count in a `performed`; the events that
//!     give a value to a computed trait; the first event of a session; the earlier step's event when an absence is
//!     completed; the completing event when `recent` runs out. The spans between steps leave nothing, a prevented
//!     absence leaves nothing, and windows read by a `where` are not read by the segment.
//! 21. A sequence holds if any choice of distinct events fits, not only the earliest.
//!
//! Campaigns
//! 22. Of equal intents the first judged stands, with its gates.
//! 23. A cap over a tag counts every campaign with that tag, capped itself or not, and its own only if it has the tag.
//! 24. `not_before` is always given: instant + hold, moved to the end of quiet hours `[from, to)`. A zone name that
//!     names no zone is passed over; fixed offsets (`+02:00`) are zones. Equal `from` and `to` are never quiet.
//! 25. A cause is `{kind, root}` with the kinds event, journey, segment, schedule, after the campaign's `when`.
//! 26. The report's `intents` count every intent, whatever its gates said.
//!
//! Attribution
//! 27. A refund rule without `value` refunds wholly; one with `value` whose event lacks it refunds 0. A refund of more
//!     than 0 that leaves nothing undoes a conversion, also one worth 0.
//! 28. A touch needs one of `medium`, `source`, `name` in `context.campaign`. Channels and campaigns that are numbers
//!     or booleans go by their text, lists and objects are `(not set)`, an empty string is itself.
//! 29. A path takes touches by their time alone: one at the instant of the conversion is on it, before or after.
//! 30. Without `models`: all six rule models. Keys without any credit have no row in the report.
//! 31. The `id` of a conversion and a touch in credit rows is the event's own id, as in roots.

pub mod attribution;
pub mod condition;
pub mod definitions;
pub mod dump;
pub mod identity;
pub mod json;
pub mod number;
pub mod records;
pub mod sha256;
pub mod story;
pub mod time;
pub mod value;
pub mod views;

use attribution::Credit;
use definitions::{Definitions, RULE_MODELS};
pub use dump::Dump;
use dump::{count, money};
use identity::{Corrections, Person};
use json::{Json, array, object, quote};
use records::Record;
use std::collections::BTreeMap;
use story::Story;
use views::Now;

pub struct Oracle {
    definitions: Definitions,
    lateness: Option<i64>,
    /// Every accepted record, in the order of arrival; those taken back stay as dedup keys.
    records: Vec<Record>,
    /// The place of each record among them, by own id and message id.
    keys: BTreeMap<(String, String), usize>,
    corrections: Corrections,
    clock: i64,
    /// Events do not move the clock.
    is_walled: bool,
    read: usize,
    verdicts: BTreeMap<&'static str, usize>,
}

impl Oracle {
    /// Definitions as JSON text; panics with a clear message when it cannot read them.
    pub fn new(definitions_json: &str) -> Oracle {
        Oracle {
            definitions: Definitions::read(definitions_json),
            lateness: None,
            records: Vec::new(),
            keys: BTreeMap::new(),
            corrections: Corrections::default(),
            clock: 0,
            is_walled: false,
            read: 0,
            verdicts: BTreeMap::new(),
        }
    }

    /// None: unlimited, as in a replay.
    pub fn with_lateness(mut self, lateness_ms: Option<i64>) -> Oracle {
        self.lateness = lateness_ms;
        self
    }

    /// The clock goes on by itself alone, as a wall's does: what is dated after it waits.
    pub fn by_the_wall(self) -> Oracle {
        Oracle { is_walled: true, ..self }
    }

    /// The clock goes on. What is reached takes part from then on, in order; whether it links is decided only now.
    pub fn tick(&mut self, to: i64) {
        let is_due = |record: &Record| record.waits && record.at <= to;
        let mut due: Vec<usize> = (0..self.records.len()).filter(|place| is_due(&self.records[*place])).collect();
        due.sort_by_key(|place| (self.records[*place].at, *place));
        for place in due {
            self.records[place].waits = false;
            self.clock = self.clock.max(self.records[place].at);
            self.link(place);
        }
        self.clock = self.clock.max(to);
    }

    /// Tells it what a user agent says of its device: type, OS, browser.
    pub fn with_agent(mut self, text: &str, says: [&str; 3]) -> Oracle {
        self.definitions.agents.insert(text.to_string(), says.map(str::to_string));
        self
    }

    /// Answers are from now on as if these definitions had been there from the start; acceptance stays as decided.
    pub fn redefine(&mut self, definitions_json: &str) {
        let agents = std::mem::take(&mut self.definitions.agents);
        self.definitions = Definitions { agents, ..Definitions::read(definitions_json) };
    }

    /// Definitions that were added under a retention see no events up to these instants, by names such as
    /// `segments/vip` and `touchpoints/0`.
    pub fn see(&mut self, horizons: &BTreeMap<String, i64>) {
        self.definitions.see(horizons.clone());
    }

    /// Records are accepted from now on as these definitions ask; answers stay those of the ones before.
    pub fn accept_as(&mut self, definitions_json: &str) {
        self.definitions.max_ids = Definitions::read(definitions_json).max_ids;
    }

    pub fn clock(&self) -> i64 {
        self.clock
    }

    /// Takes one line of a replay file; gives how it was decided, or nothing for a control line.
    pub fn push(&mut self, line: &str) -> &'static str {
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.trim().is_empty() {
            return "";
        }
        let json = json::parse(line).unwrap_or(Json::Null);
        match json.get("type").text() {
            Some("clock") => self.move_clock(&json),
            Some("retract") => self.retract(&json),
            Some("unlink") => self.unlink(&json),
            Some("erase") => self.erase(&json),
            _ => {
                let verdict = self.accept(&json, line);
                self.read += 1;
                *self.verdicts.entry(verdict).or_insert(0) += 1;
                return verdict;
            }
        }
        ""
    }

    // Acceptance.

    fn accept(&mut self, json: &Json, line: &str) -> &'static str {
        let Some(mut record) = Record::read(json, line, &self.definitions) else {
            return "invalid";
        };
        if self.corrections.is_erased(record.own(), record.at) {
            return "erased";
        }
        let key = (record.own().to_string(), record.message_id.clone());
        if let Some(first) = self.keys.get(&key) {
            return if self.records[*first].same_content(&record) { "duplicate" } else { "conflict" };
        }
        let stamp = if self.is_walled { self.clock } else { self.clock.max(record.at) };
        if self.lateness.is_some_and(|lateness| record.at < stamp - lateness) {
            return "too_late";
        }
        self.clock = stamp;
        let at = record.at;
        record.strike(|id| self.corrections.is_erased(id, at));
        record.waits = at > self.clock;
        let place = self.records.len();
        self.keys.insert(key, place);
        self.records.push(record);
        if self.records[place].waits || self.link(place) { "accepted" } else { "refused_edge" }
    }

    /// Whether the record of a place links what it says.
    fn link(&mut self, place: usize) -> bool {
        let max_ids = self.definitions.max_ids;
        let linked = !self.records[place].live
            || !identity::joins_too_many(&self.records, place, self.clock, &self.corrections, max_ids);
        self.records[place].linked = linked;
        linked
    }

    // Control lines. One that cannot be read has no effect.

    fn move_clock(&mut self, json: &Json) {
        if let Some(to) = json.get("to").integer() {
            self.tick(to);
        }
    }

    fn retract(&mut self, json: &Json) {
        let id = records::id(json.get("id")).flatten();
        if let (Some(id), Some(message_id)) = (id, json.get("messageId").text())
            && let Some(place) = self.keys.get(&(id, message_id.to_string()))
        {
            self.records[*place].live = false;
        }
    }

    fn unlink(&mut self, json: &Json) {
        let [a, b] = ["a", "b"].map(|key| records::id(json.get(key)).flatten());
        if let (Some(a), Some(b)) = (a, b) {
            self.corrections.unlink(&a, &b);
        }
    }

    fn erase(&mut self, json: &Json) {
        let id = records::id(json.get("id")).flatten();
        let person = self.people().into_iter().find(|p| id.as_ref().is_some_and(|id| p.ids.contains(id)));
        let Some(ids) = person.map(|person| person.ids) else {
            return;
        };
        for record in &mut self.records {
            match ids.contains(record.own()) {
                true => record.live = false,
                false => record.strike(|id| ids.contains(id)),
            }
        }
        ids.iter().for_each(|id| self.corrections.erase(id, self.clock));
    }

    // Answers.

    fn people(&self) -> Vec<Person<'_>> {
        identity::people(&self.records, self.clock, &self.corrections)
    }

    /// Everyone's story as of the present clock, with what is known at its end.
    fn stories(&self) -> Vec<(Person<'_>, Story<'_>, Now)> {
        let mut out = Vec::new();
        for person in self.people() {
            let mut story = Story::tell(&self.definitions, &person, self.clock);
            let now = story.at_last(self.clock);
            out.push((person, story, now));
        }
        out
    }

    pub fn dump(&self) -> Dump {
        let mut out = Dump::default();
        for (person, story, now) in &self.stories() {
            let id = &person.public_id;
            out.profiles.push(dump::profile(story, person, now, self.clock));
            out.sessions.extend(now.sessions.iter().map(|session| dump::session(story, session, self.clock)));
            out.segment_changes.extend(story.changes.iter().map(|change| dump::change(id, change)));
            out.intents.extend(story.intents.iter().map(|intent| dump::intent(story, intent)));
            out.moves.extend(story.moves.iter().cloned());
            let credits = attribution::credits(story, &now.conversions);
            out.credit.extend(credits.iter().map(|credit| dump::credit(id, credit)));
        }
        out.links = identity::told(&self.records, self.clock, &self.corrections).into_iter().collect();
        out.sort();
        out
    }

    /// The figures of the report.
    pub fn report(&self) -> String {
        let stories = self.stories();
        let decided = |verdict: &str| self.verdicts.get(verdict).copied().unwrap_or(0);
        let refused = ["too_late", "conflict", "refused_edge", "invalid", "erased"];
        let rejected: Vec<(&str, String)> = refused.iter().map(|verdict| (*verdict, count(decided(verdict)))).collect();
        object(&[
            ("read", count(self.read)),
            ("accepted", count(decided("accepted") + decided("refused_edge"))),
            ("duplicates", count(decided("duplicate"))),
            ("rejected", object(&rejected)),
            ("profiles", count(stories.len())),
            ("sessions", session_figures(&stories)),
            ("segments", self.segment_figures(&stories)),
            ("journeys", self.journey_figures(&stories)),
            ("intents", self.intent_figures(&stories)),
            ("attribution", self.attribution_figures(&stories)),
        ])
    }

    fn segment_figures(&self, stories: &[(Person, Story, Now)]) -> String {
        let size = |name: &String| stories.iter().filter(|(_, story, _)| story.members.contains_key(name)).count();
        let rows: Vec<(&str, String)> =
            self.definitions.segments.keys().map(|name| (name.as_str(), count(size(name)))).collect();
        object(&rows)
    }

    fn journey_figures(&self, stories: &[(Person, Story, Now)]) -> String {
        let size = |name: &str, state: &String| {
            let is_in = |story: &Story| story.stays.get(name).is_some_and(|stay| stay.state == *state);
            count(stories.iter().filter(|(_, story, _)| is_in(story)).count())
        };
        let states = |name: &str, journey: &definitions::Journey| {
            let rows: Vec<(&str, String)> = journey.states.keys().map(|s| (s.as_str(), size(name, s))).collect();
            object(&rows)
        };
        let journeys = self.definitions.journeys.iter();
        let rows: Vec<(&str, String)> = journeys.map(|(name, j)| (name.as_str(), states(name, j))).collect();
        object(&rows)
    }

    fn intent_figures(&self, stories: &[(Person, Story, Now)]) -> String {
        let all = || stories.iter().flat_map(|(_, story, _)| &story.intents);
        let size = |name: &String| count(all().filter(|intent| intent.campaign == *name).count());
        let rows: Vec<(&str, String)> = self.definitions.campaigns.keys().map(|n| (n.as_str(), size(n))).collect();
        object(&rows)
    }

    fn attribution_figures(&self, stories: &[(Person, Story, Now)]) -> String {
        let credits: Vec<Credit> =
            stories.iter().flat_map(|(_, story, now)| attribution::credits(story, &now.conversions)).collect();
        let asked = |model: &&&str| self.definitions.attribution.models.iter().any(|name| name == **model);
        let models = RULE_MODELS.iter().filter(asked);
        let rows: Vec<(&str, String)> = models.map(|model| (*model, attribution_rows(&credits, model))).collect();
        object(&rows)
    }
}

fn session_figures(stories: &[(Person, Story, Now)]) -> String {
    let sessions = || stories.iter().flat_map(|(_, _, now)| &now.sessions);
    let length: i64 = sessions().map(|s| s.end - s.start).sum();
    object(&[
        ("count", count(sessions().count())),
        ("events", count(sessions().map(|s| s.events.len()).sum())),
        ("length_ms", length.to_string()),
    ])
}

/// Keys added up, by value descending, then key.
fn attribution_rows(credits: &[Credit], model: &str) -> String {
    let mut sums: BTreeMap<(&str, &str), (i128, i128)> = BTreeMap::new();
    for credit in credits.iter().filter(|credit| credit.model == model) {
        let sum = sums.entry((&credit.channel, &credit.campaign)).or_insert((0, 0));
        *sum = (sum.0 + credit.conversions, sum.1 + credit.value);
    }
    let mut rows: Vec<_> = sums.into_iter().collect();
    rows.sort_by(|a, b| b.1.1.cmp(&a.1.1).then(a.0.cmp(&b.0)));
    let print = |((channel, campaign), (conversions, value)): &((&str, &str), (i128, i128))| {
        object(&[
            ("channel", quote(channel)),
            ("campaign", quote(campaign)),
            ("conversions", money(*conversions, 9)),
            ("value", money(*value, 9)),
        ])
    };
    array(&rows.iter().map(print).collect::<Vec<_>>())
}
