//! Making a plan of checked definitions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;

use ecow::EcoString;

use super::*;
use crate::condition::{Path, Root};
use crate::definitions::{Judged, Since, Source, TraitOp, When};
use crate::profile::NEVER as ALL;
use crate::profile::campaigns::Status;

impl Plan {
    /// Makes definitions that were checked ready to run.
    pub fn new(definitions: Arc<Definitions>) -> Plan {
        Plan::with(definitions, Vocabulary::default(), Horizons::new())
    }

    /// The plan of definitions that come after others: what those named keeps its numbers, so that events decoded
    /// before can be folded again. What only the new ones name is not on such events.
    pub fn after(&self, definitions: Arc<Definitions>, horizons: Horizons) -> Plan {
        Plan::with(definitions, self.vocabulary.after(), horizons)
    }

    /// The same definitions with other horizons.
    pub fn seeing(&self, horizons: Horizons) -> Plan {
        Plan::with(Arc::clone(&self.definitions), (*self.vocabulary).clone(), horizons)
    }

    fn with(definitions: Arc<Definitions>, vocabulary: Vocabulary, horizons: Horizons) -> Plan {
        let mut maker = Maker::new(&definitions, vocabulary, horizons);
        maker.traits();
        maker.name_views();
        maker.segments();
        maker.journeys();
        maker.attribution();
        maker.campaigns();
        maker.emissions();
        for event in &definitions.sessions.buying {
            let name = maker.learn(event);
            maker.rules[name.0 as usize].buying = true;
        }
        let Maker { mut plan, vocabulary, rules, .. } = maker;
        plan.vocabulary = Arc::new(vocabulary);
        plan.rules = rules;
        plan.definitions = Arc::clone(&definitions);
        plan.layout = Layout::of(&plan);
        plan
    }
}

struct Maker<'d> {
    definitions: &'d Definitions,
    vocabulary: Vocabulary,
    rules: Vec<Rules>,
    plan: Plan,
    /// Feeds and aggregates made so far: equal ones are made once.
    feeds: BTreeMap<FeedKey, usize>,
    aggregates: BTreeMap<(usize, Op, Option<Millis>), usize>,
    anchors: BTreeMap<String, usize>,
    trait_numbers: BTreeMap<String, usize>,
    views: BTreeMap<View, usize>,
    /// Up to when the definition at hand sees no events.
    after: Millis,
}

/// What tells feeds apart.
type FeedKey = (Vec<String>, Option<Condition>, Option<Path>, bool, Millis);

impl<'d> Maker<'d> {
    fn new(definitions: &'d Definitions, mut vocabulary: Vocabulary, horizons: Horizons) -> Self {
        let totals = [Total::Profiles, Total::Sessions, Total::SessionEvents, Total::SessionMillis, Total::Bounces];
        vocabulary.hold(definitions.schemas.clone());
        vocabulary.keep_private(definitions.privacy.clone());
        let rules = vec![Rules::default(); vocabulary.len()];
        let plan = Plan {
            definitions: Arc::new(Definitions::default()),
            in_full_sight: horizons.values().copied().max().unwrap_or(ALL),
            horizons,
            vocabulary: Arc::new(Vocabulary::default()),
            rules: Vec::new(),
            feeds: Vec::new(),
            aggregates: Vec::new(),
            windowed: Vec::new(),
            bags: 0,
            keeps: 0,
            steps: 0,
            layout: Layout::default(),
            traits: Vec::new(),
            session_windows: vec![None],
            session_readers: vec![Vec::new()],
            told_paths: Vec::new(),
            told_readers: Vec::new(),
            visitor_readers: Vec::new(),
            sequences: Vec::new(),
            segments: Vec::new(),
            journeys: Vec::new(),
            views: Vec::new(),
            activity_views: Vec::new(),
            anchors: 0,
            campaigns: Vec::new(),
            touches: Vec::new(),
            conversions: Vec::new(),
            totals: totals.map(Counted::from).into(),
        };
        Maker {
            definitions,
            vocabulary,
            rules,
            plan,
            feeds: BTreeMap::new(),
            aggregates: BTreeMap::new(),
            anchors: BTreeMap::new(),
            trait_numbers: definitions.traits.keys().cloned().zip(0..).collect(),
            views: BTreeMap::new(),
            after: ALL,
        }
    }

    /// Up to when a definition sees no events.
    fn after(&self, kind: &str, name: impl Display) -> Millis {
        if self.plan.horizons.is_empty() {
            return ALL;
        }
        self.plan.horizons.get(&format!("{kind}/{name}")).copied().unwrap_or(ALL)
    }

    fn learn(&mut self, event: &str) -> NameId {
        let name = self.vocabulary.learn(event);
        self.rules.resize(self.vocabulary.len(), Rules::default());
        name
    }

    fn total(&mut self, total: Total) -> usize {
        self.plan.totals.push(total.into());
        self.plan.totals.len() - 1
    }

    fn field(&mut self, events: &[NameId], path: &Path) -> Field {
        match path.root {
            Root::Event => Field::Event,
            Root::Type => Field::Type,
            Root::Traits => {
                let (key, inside): (_, Box<[_]>) = (path.keys[0].clone(), path.keys[1..].into());
                if !inside.is_empty() && !self.plan.told_paths.contains(&(key.clone(), inside.clone())) {
                    self.plan.told_paths.push((key.clone(), inside.clone()));
                }
                Field::Told(key, inside)
            }
            Root::Computed => Field::Computed(self.trait_numbers[path.keys[0].as_str()]),
            Root::Properties | Root::Context => {
                let slots: Vec<Slot> = events.iter().map(|event| self.vocabulary.want(*event, path)).collect();
                Field::Slot(slots[0])
            }
        }
    }

    fn rule(&mut self, events: &[NameId], condition: Option<&Condition>) -> Option<Rule> {
        let condition = condition?.clone().map(&mut |path| self.field(events, &path));
        let mut computed = BTreeSet::new();
        condition.paths(&mut |field| {
            if let Field::Computed(number) = field {
                computed.insert(*number);
            }
        });
        Some(Rule { condition, computed: computed.into_iter().collect() })
    }

    fn term(&mut self, event: NameId, term: Option<&Term>) -> Option<Term<Field>> {
        Some(term?.clone().map(&mut |path| self.field(&[event], &path)))
    }

    fn feed(&mut self, events: &[String], condition: Option<&Condition>, path: Option<&Path>, emitted: bool) -> usize {
        let key = (events.to_vec(), condition.cloned(), path.cloned(), emitted, self.after);
        if let Some(feed) = self.feeds.get(&key) {
            return *feed;
        }
        let names: Vec<NameId> = events.iter().map(|event| self.learn(event)).collect();
        let rule = self.rule(&names, condition);
        let field = path.map(|path| self.field(&names, path));
        let number = self.plan.feeds.len();
        let after = self.after;
        self.plan.feeds.push(Feed { rule, field, emitted, after, kept: None, aggregates: Vec::new() });
        for name in names.into_iter().collect::<BTreeSet<_>>() {
            self.rules[name.0 as usize].feeds.push(number);
        }
        self.feeds.insert(key, number);
        number
    }

    fn aggregate(&mut self, feed: usize, op: Op, within: Option<Millis>) -> usize {
        if let Some(aggregate) = self.aggregates.get(&(feed, op, within)) {
            return *aggregate;
        }
        let number = self.plan.aggregates.len();
        let bag = op.needs_bag().then_some(self.plan.bags);
        self.plan.bags += usize::from(op.needs_bag());
        if within.is_some() || !matches!(op, Op::Count | Op::Sum | Op::Average) {
            self.plan.keeps += usize::from(self.plan.feeds[feed].kept.is_none());
            self.plan.feeds[feed].kept.get_or_insert(self.plan.keeps - 1);
        }
        let tape = self.plan.feeds[feed].kept.unwrap_or(0);
        let window = within.map(|_| self.plan.windowed.len());
        self.plan.windowed.extend(window.map(|_| number));
        self.plan.aggregates.push(Aggregate { tape, op, within, window, bag, readers: Vec::new() });
        self.plan.feeds[feed].aggregates.push(number);
        self.aggregates.insert((feed, op, within), number);
        number
    }

    fn session_window(&mut self, within: Option<Millis>) -> usize {
        let windows = &mut self.plan.session_windows;
        windows.iter().position(|window| *window == within).unwrap_or_else(|| {
            windows.push(within);
            self.plan.session_readers.push(Vec::new());
            windows.len() - 1
        })
    }

    /// Computed traits: each after what it reads, so that feeds of one event run in that order.
    fn traits(&mut self) {
        let definitions = self.definitions;
        let mut made = BTreeMap::new();
        for judged in &definitions.order {
            let Judged::Trait(name) = judged else { continue };
            let of = &definitions.traits[name];
            self.after = self.after("traits", name);
            let source = match &of.of {
                Source::Sessions => {
                    let op = match &of.op {
                        TraitOp::SessionSum(field) => SessionOp::Sum(*field),
                        TraitOp::SessionAverage(field) => SessionOp::Average(*field),
                        TraitOp::SessionUniqueDay => SessionOp::Days,
                        _ => SessionOp::Count,
                    };
                    TraitSource::Sessions(self.session_window(of.within), op)
                }
                Source::Events(events) => {
                    let (op, path) = event_op(&of.op);
                    let feed = self.feed(events, of.condition.as_ref(), path, false);
                    TraitSource::Aggregate(self.aggregate(feed, op, of.within))
                }
            };
            made.insert(name, TraitPlan { name: name.into(), source });
        }
        self.plan.traits = made.into_values().collect();
    }

    /// Numbers segments and journeys by name, and sets the order in which they are judged.
    fn name_views(&mut self) {
        let definitions = self.definitions;
        let segments: BTreeMap<&String, usize> = definitions.segments.keys().zip(0..).collect();
        let journeys: BTreeMap<&String, usize> = definitions.journeys.keys().zip(0..).collect();
        for judged in &definitions.order {
            match judged {
                Judged::Trait(_) => {}
                Judged::Segment(name) => self.plan.views.push(View::Segment(segments[name])),
                Judged::Journey(name) => self.plan.views.push(View::Journey(journeys[name])),
            }
        }
        self.views = self.plan.views.iter().copied().zip(0..).collect();
        for (name, journey) in &definitions.journeys {
            let states = journey.states.keys().map(|state| {
                let name = state.into();
                StatePlan { name, transitions: Vec::new(), timers: Vec::new(), campaigns: Vec::new(), total: 0 }
            });
            let states: Vec<StatePlan> = states.collect();
            let start = state_number(&states, &journey.start);
            let after = self.after("journeys", name);
            self.plan.journeys.push(JourneyPlan { name: name.into(), start, after, states, readers: Vec::new() });
        }
    }

    fn segments(&mut self) {
        let definitions = self.definitions;
        for name in definitions.segments.keys() {
            let total = self.total(Total::Members(name.into()));
            let segment = SegmentPlan {
                name: name.into(),
                test: Test::All(Vec::new()),
                windows: BTreeSet::new(),
                after: self.after("segments", name),
                readers: Vec::new(),
                campaigns: Vec::new(),
                total,
            };
            self.plan.segments.push(segment);
        }
        // In dependency order, so that what a segment reads through others is known before.
        for view in self.plan.views.clone() {
            let View::Segment(number) = view else { continue };
            let definition = definitions.segments.values().nth(number).expect("views number the segments");
            let mut windows = BTreeSet::new();
            self.after = self.plan.segments[number].after;
            let test = self.test(definition, self.views[&view], &mut windows);
            let segment = &mut self.plan.segments[number];
            (segment.test, segment.windows) = (test, windows);
        }
    }

    fn test(&mut self, of: &definitions::Segment, reader: usize, windows: &mut BTreeSet<Window>) -> Test {
        use definitions::Segment as S;
        match of {
            S::Trait { name, test } => match self.trait_numbers.get(name).copied() {
                Some(number) => {
                    self.read_trait(number, reader, windows);
                    Test::Computed(number, test.clone())
                }
                None => {
                    push_once(&mut self.plan.told_readers, reader);
                    Test::Told(name.into(), test.clone())
                }
            },
            S::Visitor(class) => {
                push_once(&mut self.plan.visitor_readers, reader);
                Test::Visitor(*class)
            }
            S::Sessions { test, within } => {
                let window = self.session_window(*within);
                self.read_sessions(window, reader, windows);
                Test::Sessions(window, *test)
            }
            S::Journey { journey, state } => {
                let number = self.plan.journey(journey).expect("checked");
                let plan = &mut self.plan.journeys[number];
                push_once(&mut plan.readers, reader);
                Test::Journey(number, state_number(&plan.states, state))
            }
            S::Segment(name) => {
                let number = self.plan.segment(name).expect("checked");
                let read = &mut self.plan.segments[number];
                push_once(&mut read.readers, reader);
                windows.extend(&read.windows);
                Test::Segment(number)
            }
            S::Performed { event, condition, test, within } => {
                let feed = self.feed(std::slice::from_ref(event), condition.as_ref(), None, true);
                let aggregate = self.aggregate(feed, Op::Count, *within);
                self.read_aggregate(aggregate, reader, windows);
                Test::Performed(aggregate, *test)
            }
            S::All(tests) => Test::All(tests.iter().map(|test| self.test(test, reader, windows)).collect()),
            S::Any(tests) => Test::Any(tests.iter().map(|test| self.test(test, reader, windows)).collect()),
            S::Not(test) => Test::Not(Box::new(self.test(test, reader, windows))),
            S::Sequence { steps, absence, recent } => {
                let number = self.sequence(steps, absence.as_ref(), *recent, reader);
                windows.insert(Window::Sequence(number));
                Test::Sequence(number)
            }
        }
    }

    fn sequence(
        &mut self,
        steps: &[definitions::Step],
        absence: Option<&definitions::Absence>,
        recent: Option<Millis>,
        reader: usize,
    ) -> usize {
        let number = self.plan.sequences.len();
        let mut names = BTreeSet::new();
        let steps = steps.iter().map(|step| {
            let name = self.learn(&step.event);
            names.insert(name);
            StepPlan { name, rule: self.rule(&[name], step.condition.as_ref()), times: step.times, within: step.within }
        });
        let steps = steps.collect();
        let absence = absence.map(|absence| {
            let name = self.learn(&absence.event);
            names.insert(name);
            AbsencePlan { name, rule: self.rule(&[name], absence.condition.as_ref()), within: absence.within }
        });
        let first_step = self.plan.steps;
        let steps: Vec<StepPlan> = steps;
        self.plan.steps += steps.len();
        let after = self.after;
        self.plan.sequences.push(SequencePlan { steps, first_step, absence, recent, after, readers: vec![reader] });
        for name in names {
            self.rules[name.0 as usize].sequences.push(number);
        }
        number
    }

    fn read_trait(&mut self, number: usize, reader: usize, windows: &mut BTreeSet<Window>) {
        match self.plan.traits[number].source {
            TraitSource::Aggregate(aggregate) => self.read_aggregate(aggregate, reader, windows),
            TraitSource::Sessions(window, _) => self.read_sessions(window, reader, windows),
        }
    }

    fn read_aggregate(&mut self, aggregate: usize, reader: usize, windows: &mut BTreeSet<Window>) {
        let of = &mut self.plan.aggregates[aggregate];
        push_once(&mut of.readers, reader);
        if of.within.is_some() {
            windows.insert(Window::Aggregate(aggregate));
        }
    }

    fn read_sessions(&mut self, window: usize, reader: usize, windows: &mut BTreeSet<Window>) {
        push_once(&mut self.plan.session_readers[window], reader);
        if self.plan.session_windows[window].is_some() {
            windows.insert(Window::Sessions(window));
        }
    }

    fn journeys(&mut self) {
        let definitions = self.definitions;
        for (number, (name, journey)) in definitions.journeys.iter().enumerate() {
            let view = self.views[&View::Journey(number)];
            for (from, (state_name, state)) in journey.states.iter().enumerate() {
                let total = self.total(Total::Inside(name.into(), state_name.into()));
                let transitions =
                    state.transitions.iter().map(|way| self.transition(number, from, way, view)).collect();
                let timers = state.timers.iter().map(|timer| self.timer(number, from, timer, view)).collect();
                let plan = &mut self.plan.journeys[number].states[from];
                (plan.total, plan.transitions, plan.timers) = (total, transitions, timers);
            }
        }
        self.plan.anchors = self.anchors.len();
    }

    fn transition(&mut self, journey: usize, from: usize, way: &definitions::Transition, view: usize) -> Transition {
        let name = self.learn(&way.event);
        push_once(&mut self.rules[name.0 as usize].views, view);
        let to = state_number(&self.plan.journeys[journey].states, &way.to);
        let total = self.moves(journey, from, to, Some(&way.event));
        let segment = way.segment.as_ref().map(|segment| self.plan.segment(segment).expect("checked"));
        Transition { name, rule: self.rule(&[name], way.condition.as_ref()), segment, to, total }
    }

    /// The count of moves from a state to another, by one event or by timers.
    fn moves(&mut self, journey: usize, from: usize, to: usize, on: Option<&str>) -> usize {
        let of = &self.plan.journeys[journey];
        let name = |state: usize| of.states[state].name.clone();
        let total = Total::Moves(of.name.clone(), name(from), name(to), on.map(EcoString::from));
        self.plan.totals.iter().position(|other| *other.total == total).unwrap_or_else(|| self.total(total))
    }

    fn timer(&mut self, journey: usize, from: usize, timer: &definitions::Timer, view: usize) -> Timer {
        let since = match &timer.since {
            Since::Entry => Anchor::Entry,
            Since::AnyEvent => {
                push_once(&mut self.plan.activity_views, view);
                Anchor::Activity
            }
            Since::Event(event) => {
                let name = self.learn(event);
                let next = self.anchors.len();
                let anchor = *self.anchors.entry(event.clone()).or_insert(next);
                let rules = &mut self.rules[name.0 as usize];
                rules.anchor = Some(anchor);
                push_once(&mut rules.views, view);
                Anchor::Event(anchor)
            }
        };
        let to = timer.to.as_ref().map(|to| {
            let to = state_number(&self.plan.journeys[journey].states, to);
            (to, self.moves(journey, from, to, None))
        });
        // What of its properties is read is known when all definitions have been gone through.
        let emit = timer.emit.as_ref().map(|event| Emission { name: self.learn(event), values: Box::default() });
        Timer { after: timer.after, since, emit, to }
    }

    fn attribution(&mut self) {
        let definitions = self.definitions;
        for touch in &definitions.touchpoints {
            let name = self.learn(&touch.event);
            let rule = TouchRule {
                after: self.after("touchpoints", self.plan.touches.len()),
                rule: self.rule(&[name], touch.condition.as_ref()),
                channel: self.term(name, touch.channel.as_ref()),
                campaign: self.term(name, touch.campaign.as_ref()),
            };
            self.rules[name.0 as usize].touches.push(self.plan.touches.len());
            self.plan.touches.push(rule);
        }
        for conversion in &definitions.conversions {
            let number = self.plan.conversions.len();
            let name = self.learn(&conversion.event);
            self.rules[name.0 as usize].conversions.push(number);
            let refund = conversion.refund.as_ref().map(|refund| {
                let name = self.learn(&refund.event);
                self.rules[name.0 as usize].refunds.push(number);
                (self.field(&[name], &refund.id), refund.value.as_ref().map(|path| self.field(&[name], path)))
            });
            let rule = ConversionRule {
                after: self.after("conversions", number),
                name: conversion.name.as_str().into(),
                rule: self.rule(&[name], conversion.condition.as_ref()),
                id: conversion.id.as_ref().map(|path| self.field(&[name], path)),
                value: conversion.value.as_ref().map(|path| self.field(&[name], path)),
                refund,
            };
            self.plan.conversions.push(rule);
        }
    }

    fn campaigns(&mut self) {
        let definitions = self.definitions;
        for (number, (name, campaign)) in definitions.campaigns.iter().enumerate() {
            let (mut rule, mut schedule) = (None, None);
            let cause = match &campaign.when {
                When::Event { event, condition } => {
                    let event = self.learn(event);
                    rule = self.rule(&[event], condition.as_ref());
                    self.rules[event.0 as usize].campaigns.push(number);
                    Cause::Event
                }
                When::Journey { journey, state } => {
                    let journey = self.plan.journey(journey).expect("checked");
                    let state = state_number(&self.plan.journeys[journey].states, state);
                    self.plan.journeys[journey].states[state].campaigns.push(number);
                    Cause::Journey
                }
                When::Segment(segment) => {
                    let segment = self.plan.segment(segment).expect("checked");
                    self.plan.segments[segment].campaigns.push(number);
                    Cause::Segment
                }
                When::At { time, segment } => {
                    schedule = Some(Schedule {
                        from: *time,
                        every: None,
                        segment: self.plan.segment(segment).expect("checked"),
                    });
                    Cause::Schedule
                }
                When::Every { every, from, segment } => {
                    let segment = self.plan.segment(segment).expect("checked");
                    schedule = Some(Schedule { from: *from, every: Some(*every), segment });
                    Cause::Schedule
                }
            };
            let totals = Status::ALL.map(|status| self.total(Total::Intents(name.into(), status.name().into())));
            self.plan.campaigns.push(CampaignPlan {
                name: name.into(),
                cause,
                after: self.after("campaigns", name),
                rule,
                schedule,
                audience: campaign.audience.as_ref().map(|segment| self.plan.segment(segment).expect("checked")),
                consent: campaign.consent.as_ref().map(|purpose| purpose.into()),
                cap: campaign.cap.as_ref().map(|cap| (cap.at_most, cap.per, self.capped(number, cap.tag.as_deref()))),
                hold: campaign.hold,
                quiet_hours: campaign.quiet_hours.as_ref().map(|hours| (hours.from, hours.to)),
                priority: campaign.priority,
                totals,
            });
        }
    }

    /// Fills in the properties of emitted events: journey, from, to, as far as definitions read them.
    fn emissions(&mut self) {
        for number in 0..self.plan.journeys.len() {
            let journey = &self.plan.journeys[number];
            let names: Vec<EcoString> = journey.states.iter().map(|state| state.name.clone()).collect();
            let name = journey.name.clone();
            for (from, state) in self.plan.journeys[number].states.iter_mut().enumerate() {
                for timer in &mut state.timers {
                    let to = timer.to.map(|(to, _)| Value::Text(names[to].clone()));
                    let Some(emission) = &mut timer.emit else { continue };
                    let value = |key: &str| match key {
                        "journey" => Some(Value::Text(name.clone())),
                        "from" => Some(Value::Text(names[from].clone())),
                        "to" => Some(to.clone().unwrap_or(Value::Null)),
                        _ => None,
                    };
                    let wants = self.vocabulary.property_wants(emission.name).iter();
                    let read = wants.filter(|(path, _)| path.len() == 1);
                    emission.values = read.filter_map(|(path, slot)| Some((*slot, value(&path[0])?))).collect();
                }
            }
        }
    }

    /// The campaigns that a cap counts over.
    fn capped(&self, campaign: usize, tag: Option<&str>) -> Vec<usize> {
        let Some(tag) = tag else { return vec![campaign] };
        let tagged = self.definitions.campaigns.values().enumerate();
        tagged.filter(|(_, other)| other.tags.iter().any(|other| other == tag)).map(|(number, _)| number).collect()
    }
}

fn event_op(op: &TraitOp) -> (Op, Option<&Path>) {
    match op {
        TraitOp::Sum(path) => (Op::Sum, Some(path)),
        TraitOp::Min(path) => (Op::Min, Some(path)),
        TraitOp::Max(path) => (Op::Max, Some(path)),
        TraitOp::Average(path) => (Op::Average, Some(path)),
        TraitOp::First(path) => (Op::First, Some(path)),
        TraitOp::Last(path) => (Op::Last, Some(path)),
        TraitOp::Unique(path) => (Op::Unique, Some(path)),
        TraitOp::MostFrequent(path) => (Op::MostFrequent, Some(path)),
        _ => (Op::Count, None),
    }
}

fn state_number(states: &[StatePlan], name: &str) -> usize {
    states.iter().position(|state| state.name == name).expect("checked")
}

fn push_once(list: &mut Vec<usize>, item: usize) {
    if !list.contains(&item) {
        list.push(item);
    }
}
