//! Attribution: touches, conversions, refunds, and the exact split of a conversion's worth among its touches.
//!
//! All three stand on tapes. Credit is a pure function of them: it is added to the totals when the conversion's instant
//! is whole, taken off and added again when a refund restates it. Source of the split: cumulative floors over integer
//! weights, so that shares always sum to the whole.

use std::ops::Range;

use ecow::{EcoString, eco_format};
use hashbrown::HashMap;

use crate::condition::Term;
use crate::definitions::Model;
use crate::event::Event;
use crate::number::print_millionths;
use crate::plan::{Field, Plan, find};
use crate::time::Millis;
use crate::total::{Counted, Total};
use crate::value::Value;

use super::sessions::Session;
use super::{Effects, Instant, Root, Seen, State};

/// In place of a channel or campaign that is absent.
pub const NOT_SET: &str = "(not set)";
/// The channel of a conversion without a touch.
pub const DIRECT: &str = "(direct)";

/// A touch of marketing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// When, ms.
    pub at: Millis,
    /// The event.
    pub root: Root,
    /// Channel and campaign, as [`Credit`] numbers them.
    pub key: u32,
}

/// Changes of credit by model, channel and campaign. Channels and campaigns are numbered as they come: there are few of
/// them and they are named often.
#[derive(Debug)]
pub struct Credit {
    keys: Vec<(EcoString, EcoString)>,
    numbers: HashMap<(EcoString, EcoString), u32>,
    models: Vec<Model>,
    /// Conversions and value, 10^-9, by key and model.
    sums: Vec<(i128, i128)>,
    /// The totals of each sum.
    totals: Vec<[Counted; 2]>,
    changed: Vec<u32>,
    /// What was taken of each sum, all together.
    taken: Vec<(i128, i128)>,
}

/// The number of `(direct)`.
pub(super) const DIRECT_KEY: u32 = 0;

impl Credit {
    /// No credit yet, in these models.
    pub(super) fn new(models: &[Model]) -> Credit {
        let mut credit = Credit {
            keys: Vec::new(),
            numbers: HashMap::new(),
            models: models.to_vec(),
            sums: Vec::new(),
            totals: Vec::new(),
            changed: Vec::new(),
            taken: Vec::new(),
        };
        credit.number((DIRECT.into(), NOT_SET.into()));
        credit
    }

    /// Room for a key that comes after all others.
    fn make_room(&mut self, number: usize) {
        let (channel, campaign) = &self.keys[number];
        for model in &self.models {
            let total = |of: fn(EcoString, EcoString, EcoString) -> Total| {
                Counted::from(of(model.name().into(), channel.clone(), campaign.clone()))
            };
            self.sums.push((0, 0));
            self.taken.push((0, 0));
            self.totals.push([total(Total::CreditConversions), total(Total::CreditValue)]);
        }
    }

    /// The channel and campaign of a number.
    pub fn key(&self, number: u32) -> &(EcoString, EcoString) {
        &self.keys[number as usize]
    }

    fn number(&mut self, key: (EcoString, EcoString)) -> u32 {
        let next = self.keys.len() as u32;
        let number = *self.numbers.entry(key).or_insert_with_key(|key| {
            self.keys.push(key.clone());
            next
        });
        if number == next {
            self.make_room(number as usize);
        }
        number
    }

    fn add(&mut self, model: usize, key: u32, conversions: i128, value: i128) {
        let place = key as usize * self.models.len() + model;
        let sum = &mut self.sums[place];
        if *sum == (0, 0) {
            self.changed.push(place as u32);
        }
        *sum = (sum.0 + conversions, sum.1 + value);
    }

    /// Takes all changes.
    pub fn take(&mut self) -> Vec<(Counted, i128)> {
        let mut changes = Vec::with_capacity(2 * self.changed.len());
        for place in self.changed.drain(..) {
            let (conversions, value) = std::mem::take(&mut self.sums[place as usize]);
            let taken = &mut self.taken[place as usize];
            *taken = (taken.0 + conversions, taken.1 + value);
            let [of_conversions, of_value] = &self.totals[place as usize];
            changes.push((of_conversions.clone(), conversions));
            changes.push((of_value.clone(), value));
        }
        changes.retain(|(_, change)| *change != 0);
        changes
    }

    /// All that was ever taken.
    pub(super) fn taken(&self) -> impl Iterator<Item = (Counted, i128)> + '_ {
        let both = self.totals.iter().zip(&self.taken);
        let both = both.flat_map(|(of, (conversions, value))| of.iter().zip([*conversions, *value]));
        both.filter(|(_, taken)| *taken != 0).map(|(total, taken)| (total.clone(), taken))
    }
}

/// A conversion: the first of its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// The rule, by number.
    pub rule: usize,
    /// What tells it from others; none: nothing does.
    pub id: Option<Value>,
    /// When, ms.
    pub at: Millis,
    /// The event.
    pub root: Root,
    /// What it was worth, millionths.
    pub value: i64,
}

/// A refund, whether or not its conversion is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refund {
    rule: usize,
    id: Value,
    /// Millionths; none: wholly.
    value: Option<i64>,
}

/// One touch's part of a conversion, in one model; no touch: `(direct)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The touch, by its place on the tape.
    pub touch: Option<usize>,
    /// Part of one conversion, 10^-9.
    pub conversions: i128,
    /// Part of its worth, 10^-9.
    pub value: i128,
}

impl Instant<'_> {
    /// The first touch rule that matches makes a touch; else UTM fields do.
    pub(super) fn touch(&mut self, event: &Event, seen: Seen<'_>) {
        let plan = self.plan;
        let rules = &seen.rules.touches;
        let utm = event.context().and_then(|context| context.utm.as_ref());
        let mut rules = rules.iter().map(|rule| &plan.touches[*rule]);
        let rule = rules.find(|rule| self.at > rule.after && self.holds(rule.rule.as_ref(), seen));
        let (channel, campaign) = match (rule, utm) {
            (Some(rule), _) => (self.text(rule.channel.as_ref(), seen), self.text(rule.campaign.as_ref(), seen)),
            (None, Some((channel, campaign))) if plan.definitions.attribution.utm => {
                (channel.clone().unwrap_or(NOT_SET.into()), campaign.clone().unwrap_or(NOT_SET.into()))
            }
            _ => return,
        };
        let key = self.effects.credit.number((channel, campaign));
        self.state.tapes.touches.push(Touch { at: self.at, root: seen.root, key });
    }

    /// Conversions and refunds that an event makes.
    pub(super) fn convert(&mut self, seen: Seen<'_>) {
        let plan = self.plan;
        let rules = seen.rules;
        for number in &rules.conversions {
            let rule = &plan.conversions[*number];
            if self.at <= rule.after || !self.holds(rule.rule.as_ref(), seen) {
                continue;
            }
            let id = rule.id.as_ref().and_then(|field| self.scalar(field, seen));
            let value = match rule.value.as_ref().and_then(|field| self.read(field, seen)) {
                Some(Value::Number(number)) => number.0.max(0),
                _ => 0,
            };
            let tapes = &self.state.tapes;
            let again = id.is_some()
                && tapes.conversions.iter().any(|other| other.id == id && plan.same_name(other.rule, *number));
            if !again {
                let conversion = Conversion { rule: *number, id, at: self.at, root: seen.root, value };
                self.state.core.standing += u32::from(plan.net(&conversion, &tapes.refunds).is_some());
                self.state.tapes.conversions.push(conversion);
            }
        }
        for number in &rules.refunds {
            self.refund(*number, seen);
        }
    }

    fn refund(&mut self, number: usize, seen: Seen<'_>) {
        let plan = self.plan;
        let rule = &plan.conversions[number];
        let Some((id, value)) = rule.refund.as_ref().filter(|_| self.at > rule.after) else { return };
        let Some(id) = self.scalar(id, seen) else { return };
        // Without a path to a value a refund is whole; with one, an event that says no number takes nothing.
        let value = value.as_ref().map(|field| match self.read(field, seen) {
            Some(Value::Number(number)) => number.0.max(0),
            _ => 0,
        });
        let standing = |state: &State| {
            let of = state
                .tapes
                .conversions
                .iter()
                .filter(|other| plan.same_name(other.rule, number) && other.id.as_ref() == Some(&id));
            of.filter(|conversion| plan.net(conversion, &state.tapes.refunds).is_some()).count() as u32
        };
        let before = standing(self.state);
        self.state.tapes.refunds.push(Refund { rule: number, id: id.clone(), value });
        self.state.core.standing -= before - standing(self.state);
        for readers in &plan.session_readers {
            self.wake_all(readers);
        }
    }

    /// Adds the credit of this instant's conversions, and restates that of earlier ones that it refunds.
    pub(super) fn credit(&mut self, conversions: usize, refunds: usize) {
        let plan = self.plan;
        let tapes = &self.state.tapes;
        if refunds < tapes.refunds.len() {
            let restated = plan.restated(&tapes.conversions[..conversions], &tapes.refunds[refunds..]);
            for conversion in &restated {
                plan.add_credit(self.state, *conversion, &tapes.refunds[..refunds], -1, self.effects);
                plan.add_credit(self.state, *conversion, &tapes.refunds, 1, self.effects);
            }
        }
        for conversion in conversions..tapes.conversions.len() {
            plan.add_credit(self.state, conversion, &tapes.refunds, 1, self.effects);
        }
    }

    fn text(&self, term: Option<&Term<Field>>, seen: Seen<'_>) -> EcoString {
        let value = term.and_then(|term| term.value(&|field| self.read(field, seen)));
        match value {
            Some(Value::Text(text)) => text.clone(),
            Some(Value::Huge(text)) => text.clone(),
            Some(Value::Number(number)) => print_millionths(i128::from(number.0)).into(),
            Some(Value::Bool(bool)) => eco_format!("{bool}"),
            _ => NOT_SET.into(),
        }
    }

    fn scalar(&self, field: &Field, seen: Seen<'_>) -> Option<Value> {
        let value = match field {
            Field::Slot(slot) => find(seen.values, *slot),
            field => self.read(field, seen),
        };
        value.filter(|value| !matches!(value, Value::Null | Value::List(_) | Value::Object)).cloned()
    }
}

impl Plan {
    /// Conversion rules of one name share ids.
    fn same_name(&self, a: usize, b: usize) -> bool {
        a == b || self.conversions[a].name == self.conversions[b].name
    }

    /// What a conversion is worth after refunds, millionths; none when a refund leaves nothing of it.
    pub fn net(&self, conversion: &Conversion, refunds: &[Refund]) -> Option<i64> {
        let Some(id) = &conversion.id else { return Some(conversion.value) };
        let (mut net, mut refunded) = (conversion.value, false);
        for refund in refunds.iter().filter(|refund| refund.id == *id && self.same_name(refund.rule, conversion.rule)) {
            refunded |= refund.value != Some(0);
            net = refund.value.map_or(0, |value| (net - value).max(0));
        }
        if refunded && net == 0 { None } else { Some(net) }
    }

    /// The conversions whose credit changes with these refunds.
    fn restated(&self, conversions: &[Conversion], refunds: &[Refund]) -> Vec<usize> {
        let hit = |conversion: &Conversion| {
            let of = |refund: &&Refund| {
                conversion.id.as_ref() == Some(&refund.id) && self.same_name(refund.rule, conversion.rule)
            };
            refunds.iter().find(of).is_some()
        };
        let resets = self.definitions.attribution.reset_on_conversion;
        let mut names = Vec::new();
        let mut restated = Vec::new();
        for (number, conversion) in conversions.iter().enumerate() {
            // With paths that begin anew, what becomes of one conversion decides where the next ones' paths begin.
            let after = resets && names.contains(&&self.conversions[conversion.rule].name);
            if hit(conversion) {
                names.push(&self.conversions[conversion.rule].name);
                restated.push(number);
            } else if after {
                restated.push(number);
            }
        }
        restated
    }

    /// Before going back to so many conversions and refunds: takes off the credit that will not stand there. Gives
    /// those to add again.
    pub(super) fn uncredit(
        &self,
        state: &State,
        conversions: usize,
        refunds: usize,
        effects: &mut Effects,
    ) -> Vec<usize> {
        let tapes = &state.tapes;
        let restated = match tapes.refunds.get(refunds..) {
            Some([_, ..]) => self.restated(&tapes.conversions[..conversions], &tapes.refunds[refunds..]),
            _ => Vec::new(),
        };
        for conversion in restated.iter().copied().chain(conversions..tapes.conversions.len()) {
            self.add_credit(state, conversion, &tapes.refunds, -1, effects);
        }
        restated
    }

    /// Adds or takes off the credit of one conversion, under the refunds given.
    pub(super) fn add_credit(
        &self,
        state: &State,
        conversion: usize,
        refunds: &[Refund],
        sign: i128,
        effects: &mut Effects,
    ) {
        for (number, model) in self.models().iter().enumerate() {
            for share in self.shares(state, conversion, *model, refunds, &effects.credit) {
                let key = share.touch.map_or(DIRECT_KEY, |touch| state.tapes.touches[touch].key);
                effects.credit.add(number, key, sign * share.conversions, sign * share.value);
            }
        }
    }

    /// The shares of a conversion in a rule model; none of a conversion that was refunded.
    pub fn shares(
        &self,
        state: &State,
        conversion: usize,
        model: Model,
        refunds: &[Refund],
        credit: &Credit,
    ) -> Vec<Share> {
        let of = &state.tapes.conversions[conversion];
        let Some(net) = self.net(of, refunds) else { return Vec::new() };
        let value = i128::from(net) * 1_000;
        let path = self.path(state, conversion, refunds);
        if path.is_empty() {
            return vec![Share { touch: None, conversions: ONE, value }];
        }
        let touches = &state.tapes.touches[path.clone()];
        let weights = match model {
            // One touch has it all.
            Model::FirstTouch => return vec![Share { touch: Some(path.start), conversions: ONE, value }],
            Model::LastTouch => return vec![Share { touch: Some(path.end - 1), conversions: ONE, value }],
            Model::LastNonDirect => {
                let direct = |touch: &Touch| matches!(credit.key(touch.key).0.as_str(), "direct" | DIRECT);
                let last = touches.iter().rposition(|touch| !direct(touch)).unwrap_or(touches.len() - 1);
                return vec![Share { touch: Some(path.start + last), conversions: ONE, value }];
            }
            Model::Linear => vec![1; touches.len()],
            Model::PositionBased => position_weights(touches.len()),
            Model::TimeDecay => decay_weights(touches, self.definitions.attribution.half_life),
        };
        let all: i128 = weights.iter().sum();
        let (mut sum, mut before) = (0, (0, 0));
        let mut share = |(touch, weight): (usize, i128)| {
            sum += weight;
            let until = (floor(ONE * sum, all), floor(value * sum, all));
            let share = Share { touch: Some(touch), conversions: until.0 - before.0, value: until.1 - before.1 };
            before = until;
            share
        };
        path.zip(weights).map(&mut share).filter(|share| share.conversions != 0 || share.value != 0).collect()
    }

    /// The touches that a conversion's credit goes to: places on the tape.
    fn path(&self, state: &State, conversion: usize, refunds: &[Refund]) -> Range<usize> {
        self.cut(self.reach(state, conversion, refunds))
    }

    /// A path of these touches: the last ones.
    pub(super) fn cut(&self, touches: Range<usize>) -> Range<usize> {
        let most = self.definitions.attribution.path_max as usize;
        touches.start.max(touches.end.saturating_sub(most))..touches.end
    }

    /// The touches in reach of a conversion: places on the tape.
    pub(super) fn reach(&self, state: &State, conversion: usize, refunds: &[Refund]) -> Range<usize> {
        let attribution = &self.definitions.attribution;
        let of = &state.tapes.conversions[conversion];
        let touches = &state.tapes.touches;
        let end = touches.partition_point(|touch| touch.at <= of.at);
        let mut start = touches.partition_point(|touch| touch.at < of.at - attribution.lookback);
        if attribution.reset_on_conversion {
            let earlier = state.tapes.conversions[..conversion].iter().rev();
            let mut standing =
                earlier.filter(|other| self.same_name(other.rule, of.rule) && self.net(other, refunds).is_some());
            if let Some(previous) = standing.next() {
                start = start.max(touches.partition_point(|touch| touch.at <= previous.at));
            }
        }
        start.min(end)..end
    }
}

/// One conversion, in 10^-9.
const ONE: i128 = 1_000_000_000;

impl State {
    /// How many conversions of a session stand, and what they are worth, millionths.
    pub fn session_money(&self, plan: &Plan, session: &Session) -> (u64, i128) {
        let first = self.tapes.conversions.partition_point(|conversion| conversion.at < session.start);
        let inside = self.tapes.conversions[first..].iter().take_while(|conversion| conversion.at <= session.end);
        let net = inside.filter_map(|conversion| plan.net(conversion, &self.tapes.refunds));
        net.fold((0, 0), |(count, sum), net| (count + 1, sum + i128::from(net)))
    }

    /// The first touch of a session.
    pub fn session_touch(&self, session: &Session) -> Option<&Touch> {
        let first = self.tapes.touches.partition_point(|touch| touch.at < session.start);
        self.tapes.touches.get(first).filter(|touch| touch.at <= session.end)
    }
}

/// The quotient of two numbers that are not negative, rounded down; by the machine's own division where they fit it.
fn floor(a: i128, b: i128) -> i128 {
    match (u64::try_from(a), u64::try_from(b)) {
        (Ok(a), Ok(b)) => i128::from(a / b),
        _ => a / b,
    }
}

/// The weights of `position_based`, oldest first.
fn position_weights(n: usize) -> Vec<i128> {
    let ends = if n <= 2 { 1 } else { 2 * (n as i128 - 2) };
    (0..n).map(|touch| if touch == 0 || touch == n - 1 { ends } else { 1 }).collect()
}

/// The weights of `time_decay`, oldest first: by age to the newest touch.
fn decay_weights(path: &[Touch], half_life: Millis) -> Vec<i128> {
    let newest = path[path.len() - 1].at;
    path.iter().map(|touch| decay(newest - touch.at, half_life)).collect()
}

/// 2^(40 - age / half_life) as an integer, by the constants of the semantics: floor(2^62 · 2^(-2^-i)), i from 1.
fn decay(age: Millis, half_life: Millis) -> i128 {
    let x = i128::from(age) * 65_536 / i128::from(half_life);
    let (q, r) = (x / 65_536, x % 65_536);
    if q + 22 >= 63 {
        return 0;
    }
    let mut weight = 1i128 << 62;
    for (bit, constant) in DECAY.iter().enumerate() {
        if r >> (15 - bit) & 1 == 1 {
            weight = (weight * constant) >> 62;
        }
    }
    weight >> (q + 22)
}

const DECAY: [i128; 16] = [
    3260954456333195553,
    3877950241171266237,
    4228934724888366667,
    4416165660797809419,
    4512867096753504462,
    4562008997483360349,
    4586780255215411730,
    4599216278082138665,
    4605446927862164404,
    4608565417332308034,
    4610125453837388245,
    4610905670110601999,
    4611295827762151833,
    4611490918967884500,
    4611588467665893036,
    4611637242788701950,
];
