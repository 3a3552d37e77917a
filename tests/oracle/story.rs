//! The story of one profile: its instants walked in order, everything judged again after every single item.

use super::definitions::{Campaign, Definitions, Timer, When};
use super::identity::Person;
use super::json::Json;
use super::records::Record;
use super::sha256;
use super::time;
use super::views::{self, Happening, Now, Root, Scene};
use std::collections::{BTreeMap, BTreeSet};

/// A profile's stay in a state of a journey.
pub struct Stay {
    pub state: String,
    pub since: i64,
    /// One for each timer of the state, as listed.
    pub timers: Vec<Option<Armed>>,
}

#[derive(Clone)]
pub struct Armed {
    pub at: i64,
    pub root: Root,
}

pub struct Change {
    pub segment: String,
    pub entered: bool,
    pub at: i64,
    pub root: Root,
}

pub struct Intent {
    pub id: String,
    pub campaign: String,
    pub at: i64,
    pub not_before: i64,
    /// `event`, `journey`, `segment` or `schedule`.
    pub kind: &'static str,
    pub root: Root,
    pub status: &'static str,
}

/// A move of a journey from state to state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    pub journey: String,
    pub from: String,
    pub to: String,
    /// The event's name; none: a timer moved it.
    pub on: Option<String>,
}

/// What is judged: an event, a timer, or the windows of an instant.
struct Item {
    at: i64,
    /// None for windows: each segment then has its own.
    root: Option<Root>,
    event: Option<usize>,
    /// The states that journeys have just entered.
    moves: Vec<(String, String)>,
}

pub struct Story<'a> {
    pub definitions: &'a Definitions,
    pub public_id: String,
    pub past: Vec<Happening<'a>>,
    pub stays: BTreeMap<String, Stay>,
    /// The segments that the profile is in, and since when.
    pub members: BTreeMap<String, i64>,
    pub changes: Vec<Change>,
    pub intents: Vec<Intent>,
    pub moves: Vec<Move>,
    /// The instants at which something may be due.
    agenda: BTreeSet<i64>,
    /// Those of them at which a window may run out.
    run_outs: BTreeSet<i64>,
}

impl<'a> Story<'a> {
    /// Tells the story of a person up to and including the instant `clock`.
    pub fn tell(definitions: &'a Definitions, person: &Person<'a>, clock: i64) -> Story<'a> {
        let mut story = Story {
            definitions,
            public_id: person.public_id.clone(),
            past: vec![],
            stays: BTreeMap::new(),
            members: BTreeMap::new(),
            changes: vec![],
            intents: vec![],
            moves: vec![],
            agenda: person.events.iter().map(|r| r.at).collect(),
            run_outs: BTreeSet::new(),
        };
        story.agenda.extend(schedule_instants(definitions, person.events[0].at, clock));
        while let Some(at) = story.agenda.pop_first().filter(|at| *at <= clock) {
            story.instant(at, &person.events);
        }
        story.apply_caps();
        story
    }

    /// The order of one instant is law: windows, timers, what they emitted, events, schedules.
    fn instant(&mut self, at: i64, events: &[&'a Record]) {
        if self.run_outs.contains(&at) {
            self.judge(Item { at, root: None, event: None, moves: vec![] });
        }
        for emitted in self.fire_timers(at) {
            self.happen(emitted);
        }
        for record in events.iter().filter(|r| r.at == at) {
            let happening = Happening::of_record(record);
            self.start_journeys(at, &happening.root);
            self.happen(happening);
        }
        self.run_schedules(at);
    }

    // Journeys.

    /// At the first event that a journey sees.
    fn start_journeys(&mut self, at: i64, root: &Root) {
        let definitions = self.definitions;
        for (name, journey) in &definitions.journeys {
            if !self.stays.contains_key(name) && at > definitions.horizon("journeys", name) {
                self.enter(name, &journey.start, at, root);
            }
        }
    }

    fn enter(&mut self, journey: &str, state: &str, at: i64, root: &Root) {
        let definitions = self.definitions;
        let timers = definitions.journeys[journey].states[state].timers.iter();
        let timers = timers.map(|timer| self.arm(journey, timer, at, Some((at, root.clone())))).collect();
        self.stays.insert(journey.to_string(), Stay { state: state.to_string(), since: at, timers });
    }

    /// A deadline is armed only if it is later than now.
    fn arm(&mut self, journey: &str, timer: &Timer, now: i64, entry: Option<(i64, Root)>) -> Option<Armed> {
        let horizon = self.definitions.horizon("journeys", journey);
        let latest = |is_anchor: &dyn Fn(&Happening) -> bool| {
            self.past.iter().rev().find(|h| h.at > horizon && is_anchor(h)).map(|h| (h.at, h.root.clone()))
        };
        let (anchor, root) = match timer.since.as_str() {
            "entry" => entry,
            "any_event" => latest(&|h| h.is_activity()),
            name => latest(&|h| h.is_named(name)),
        }?;
        let at = anchor + timer.after;
        if at <= now {
            return None;
        }
        self.agenda.insert(at);
        Some(Armed { at, root })
    }

    /// Fires what is due, journeys by name; gives what was emitted.
    fn fire_timers(&mut self, at: i64) -> Vec<Happening<'a>> {
        let mut emitted = Vec::new();
        let definitions = self.definitions;
        let names: Vec<String> = self.stays.keys().cloned().collect();
        for name in names {
            let from = self.stays[&name].state.clone();
            for (place, timer) in definitions.journeys[&name].states[&from].timers.iter().enumerate() {
                let armed = &mut self.stays.get_mut(&name).expect("a stay").timers[place];
                if armed.as_ref().map(|armed| armed.at) != Some(at) {
                    continue;
                }
                let root = armed.take().expect("armed").root;
                if let Some(event) = &timer.emit {
                    let properties = emitted_properties(&name, &from, timer.to.as_deref());
                    emitted.push(Happening::new(at, Some(event.clone()), root.clone(), properties));
                }
                let mut moves = vec![];
                if let Some(to) = &timer.to {
                    self.moves.push(Move { journey: name.clone(), from: from.clone(), to: to.clone(), on: None });
                    self.enter(&name, to, at, &root);
                    moves.push((name.clone(), to.clone()));
                }
                self.judge(Item { at, root: Some(root), event: None, moves });
                if timer.to.is_some() {
                    break;
                }
            }
        }
        emitted
    }

    /// Gives an event to every journey; gives the states that were entered.
    fn step_journeys(&mut self, event: usize, now: &Now) -> Vec<(String, String)> {
        let definitions = self.definitions;
        let mut moves = Vec::new();
        for name in definitions.journey_order.iter().filter(|name| self.stays.contains_key(*name)).collect::<Vec<_>>() {
            match self.transition(name, event, now) {
                Some(to) => {
                    let root = self.past[event].root.clone();
                    let (from, on) = (self.stays[name].state.clone(), self.past[event].name.clone());
                    self.moves.push(Move { journey: name.clone(), from, to: to.clone(), on });
                    self.enter(name, &to, now.at, &root);
                    moves.push((name.clone(), to));
                }
                None => self.anchor_again(name, event),
            }
        }
        moves
    }

    /// The first listed transition that matches.
    fn transition(&self, journey: &str, event: usize, now: &Now) -> Option<String> {
        let state = &self.definitions.journeys[journey].states[&self.stays[journey].state];
        let subject = self.past[event].subject(&now.told, &now.computed);
        let in_segment = |name: &String| self.holds(name, now);
        let found = state.transitions.iter().find(|transition| {
            transition.pattern.matches(&subject) && transition.segment.as_ref().is_none_or(in_segment)
        });
        found.map(|transition| transition.to.clone())
    }

    /// A new anchor moves the timers that wait since it.
    fn anchor_again(&mut self, journey: &str, event: usize) {
        let definitions = self.definitions;
        let state = &definitions.journeys[journey].states[&self.stays[journey].state];
        for (place, timer) in state.timers.iter().enumerate() {
            let happening = &self.past[event];
            let is_anchor = match timer.since.as_str() {
                "entry" => false,
                "any_event" => happening.is_activity(),
                name => happening.is_named(name),
            };
            if is_anchor {
                let armed = self.arm(journey, timer, happening.at, None);
                self.stays.get_mut(journey).expect("a stay").timers[place] = armed;
            }
        }
    }

    // Judging.

    fn happen(&mut self, happening: Happening<'a>) {
        let definitions = self.definitions;
        for window in &definitions.windows {
            let touches = match &window.names {
                Some(names) => names.iter().any(|name| happening.is_named(name)),
                None => happening.is_activity(),
            };
            if touches {
                self.run_outs.insert(happening.at + window.span);
                self.agenda.insert(happening.at + window.span);
            }
        }
        let (at, root) = (happening.at, Some(happening.root.clone()));
        self.past.push(happening);
        self.judge(Item { at, root, event: Some(self.past.len() - 1), moves: vec![] });
    }

    /// Told traits, sessions and the rest first; then journeys, segments, campaigns.
    fn judge(&mut self, mut item: Item) {
        if let Some(event) = item.event {
            self.note_touches(event);
        }
        let now = self.now(item.at, item.event);
        if let Some(event) = item.event {
            let marks = views::marks(&self.definitions.patterns, &self.past[event].subject(&now.told, &now.computed));
            self.past[event].marks = marks;
            item.moves = self.step_journeys(event, &now);
        }
        let entered = self.flip_segments(&item, &now);
        self.run_campaigns(&item, &entered, &now);
    }

    /// What the event means to attribution, as of itself.
    fn note_touches(&mut self, event: usize) {
        let (told, none) = (views::told(&self.past), BTreeMap::new());
        let happening = &self.past[event];
        let subject = happening.subject(&told, &none);
        let touch = views::touch_of(self.definitions, happening, &subject);
        let claims = views::claims_of(self.definitions, happening, &subject);
        let refunds = views::refunds_of(self.definitions, happening, &subject);
        let happening = &mut self.past[event];
        (happening.touch, happening.claims, happening.refunds) = (touch, claims, refunds);
    }

    /// What is known at an instant; `event`: the event whose gifts to the computed traits are still to be noted.
    fn now(&mut self, at: i64, event: Option<usize>) -> Now {
        let told = views::told(&self.past);
        let conversions = views::conversions(&self.past);
        let sessions = views::sessions(&self.past, self.definitions.gap, &conversions);
        let mut now = Now { at, told, computed: BTreeMap::new(), sessions, conversions };
        for (place, computed) in self.definitions.traits.iter().enumerate() {
            if let Some(event) = event {
                let happening = &self.past[event];
                let input = views::input(computed, happening, &happening.subject(&now.told, &now.computed));
                self.past[event].inputs.push(input);
            }
            let value = views::compute(computed, place, &self.past, &now.sessions, at);
            now.computed.insert(computed.name.clone(), value);
        }
        now
    }

    /// What is known at the end.
    pub fn at_last(&mut self, clock: i64) -> Now {
        self.now(clock, None)
    }

    fn states(&self) -> BTreeMap<String, String> {
        self.stays.iter().map(|(name, stay)| (name.clone(), stay.state.clone())).collect()
    }

    fn holds(&self, segment: &str, now: &Now) -> bool {
        let scene = Scene { definitions: self.definitions, past: &self.past, now, states: &self.states() };
        views::is_seen(self.definitions, "segments", segment, &self.past)
            && scene.holds(&self.definitions.segments[segment])
    }

    /// Writes down each flip; gives the segments entered with their roots.
    fn flip_segments(&mut self, item: &Item, now: &Now) -> Vec<(String, Root)> {
        let states = self.states();
        let scene = Scene { definitions: self.definitions, past: &self.past, now, states: &states };
        let mut flips = Vec::new();
        for (name, clause) in &self.definitions.segments {
            if !views::is_seen(self.definitions, "segments", name, &self.past) {
                continue;
            }
            let entered = scene.holds(clause);
            if entered == self.members.contains_key(name) {
                continue;
            }
            let left = || scene.last_left(clause).map(|event| self.past[event].root.clone());
            let root = item.root.clone().or_else(left).expect("only what ran out flips a segment");
            flips.push(Change { segment: name.clone(), entered, at: item.at, root });
        }
        let mut entered = Vec::new();
        for flip in flips {
            if flip.entered {
                self.members.insert(flip.segment.clone(), flip.at);
                entered.push((flip.segment.clone(), flip.root.clone()));
            } else {
                self.members.remove(&flip.segment);
            }
            self.changes.push(flip);
        }
        entered
    }

    // Campaigns.

    fn run_campaigns(&mut self, item: &Item, entered: &[(String, Root)], now: &Now) {
        let definitions = self.definitions;
        for (name, campaign) in &definitions.campaigns {
            if !views::is_seen(definitions, "campaigns", name, &self.past) {
                continue;
            }
            let cause = match &campaign.when {
                When::Event(pattern) => {
                    let matches = |event: usize| pattern.matches(&self.past[event].subject(&now.told, &now.computed));
                    item.root.clone().filter(|_| item.event.is_some_and(matches)).map(|root| ("event", root))
                }
                When::Journey { name, state } => {
                    let moved = item.moves.contains(&(name.clone(), state.clone()));
                    item.root.clone().filter(|_| moved).map(|root| ("journey", root))
                }
                When::Segment(segment) => {
                    let found = entered.iter().find(|(name, _)| name == segment);
                    found.map(|(_, root)| ("segment", root.clone()))
                }
                When::Schedule { .. } => None,
            };
            if let Some((kind, root)) = cause {
                self.intend(name, campaign, item.at, kind, root);
            }
        }
    }

    fn run_schedules(&mut self, at: i64) {
        let definitions = self.definitions;
        for (name, campaign) in &definitions.campaigns {
            let When::Schedule { from, every, segment } = &campaign.when else { continue };
            let due = at == *from || every.is_some_and(|every| at > *from && (at - from) % every == 0);
            let is_seen = views::is_seen(definitions, "campaigns", name, &self.past);
            if due && is_seen && self.members.contains_key(segment) {
                let root = Root { id: self.public_id.clone(), message_id: String::new() };
                self.intend(name, campaign, at, "schedule", root);
            }
        }
    }

    /// Equal campaign, root and instant are one intent, which is to say: equal ids.
    fn intend(&mut self, name: &str, campaign: &Campaign, at: i64, kind: &'static str, root: Root) {
        let id = intent_id(name, &root, at);
        if self.intents.iter().any(|intent| intent.id == id) {
            return;
        }
        let in_audience = campaign.audience.as_ref().is_none_or(|segment| self.members.contains_key(segment));
        let granted = |purpose: &String| views::granted(&self.past).contains(purpose);
        let status = if !in_audience {
            "audience"
        } else if !campaign.consent.as_ref().is_none_or(granted) {
            "consent"
        } else {
            "due"
        };
        let earliest = at + campaign.hold;
        let not_before = match campaign.quiet {
            Some((from, to)) => time::after_quiet(earliest, from, to, self.zone()),
            None => earliest,
        };
        self.intents.push(Intent { id, campaign: name.to_string(), at, not_before, kind, root, status });
    }

    /// Told trait, latest context, the file's, UTC: the first that names a zone.
    fn zone(&self) -> i64 {
        let told = views::told(&self.past);
        let context = self.past.iter().rev().find_map(|h| h.context().get("timezone").text());
        let names = [told.get("timezone").and_then(Json::text), context, self.definitions.timezone.as_deref()];
        let zone = names.into_iter().flatten().find_map(time::zone);
        zone.unwrap_or(0)
    }

    /// Caps are counted in an order of their own, once all intents are known.
    fn apply_caps(&mut self) {
        let definitions = self.definitions;
        let priority = |intent: &Intent| definitions.campaigns[&intent.campaign].priority;
        self.intents.sort_by(|a, b| {
            let by_priority = priority(b).cmp(&priority(a));
            a.at.cmp(&b.at).then(by_priority).then(a.campaign.cmp(&b.campaign)).then(a.id.cmp(&b.id))
        });
        for place in 0..self.intents.len() {
            let intent = &self.intents[place];
            let Some(cap) = &definitions.campaigns[&intent.campaign].cap else { continue };
            let counts = |other: &&Intent| match &cap.tag {
                Some(tag) => definitions.campaigns[&other.campaign].tags.contains(tag),
                None => other.campaign == intent.campaign,
            };
            let passed = |other: &&Intent| other.status == "due" && other.at > intent.at - cap.per;
            let before = self.intents[..place].iter().filter(counts).filter(passed).count();
            if intent.status == "due" && before >= cap.at_most {
                self.intents[place].status = "cap";
            }
        }
    }
}

/// `to` is null if the timer does not move.
fn emitted_properties(journey: &str, from: &str, to: Option<&str>) -> Json {
    let text = |t: &str| Json::Text(t.to_string());
    let members = [("journey", text(journey)), ("from", text(from)), ("to", to.map_or(Json::Null, text))];
    Json::Map(members.into_iter().map(|(key, value)| (key.to_string(), value)).collect())
}

pub fn intent_id(campaign: &str, root: &Root, at: i64) -> String {
    let digest = sha256::hex(&format!("intent\n{campaign}\n{}\n{}\n{at}", root.id, root.message_id));
    format!("i_{}", &digest[..32])
}

/// The instants of all schedules between a profile's first event and the clock.
fn schedule_instants(definitions: &Definitions, first: i64, clock: i64) -> Vec<i64> {
    let mut out = Vec::new();
    for campaign in definitions.campaigns.values() {
        let When::Schedule { from, every, .. } = &campaign.when else { continue };
        let Some(every) = every else {
            out.push(*from);
            continue;
        };
        let skipped = (first - from).max(0) / every;
        let mut at = from + skipped * every;
        while at <= clock {
            out.push(at);
            at += every;
        }
    }
    out
}
