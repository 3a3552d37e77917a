//! COST: W1's views as one hand-written, single-threaded, incremental program on decoded clicks.
//!
//! It knows W1 and nothing else. Users are dense indices, and each keeps its history in event order. In order, a click
//! is one step forward. A late one is put in its place, and only what it changes is mended: the session gaps on both
//! sides of it, the journey from there until it runs as before, and the conversions whose paths it enters.
//! Every past event remembers the state after it, so that the history is its own sequence of checkpoints.

use super::clicks::{Click, Event};
use super::figures::*;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const NEXT: [[State; 11]; 7] = next_states();

#[derive(Default)]
pub struct Yardstick {
    figures: Figures,
    users: Vec<User>,
    seen: Numbers,
    /// (deadline or earlier, user), at most one per user.
    timers: BinaryHeap<Reverse<(i64, u32)>>,
}

/// Laid out so that the first line of cache holds what most clicks need.
#[repr(C, align(64))]
struct User {
    history: Vec<Past>,
    last: i64,
    /// The latest add_to_cart.
    anchor: Anchor,
    last_number: u32,
    /// After the last event, before any timer that follows it.
    state: State,
    /// The timer after the last event has fired.
    fired: bool,
    /// `timers` has an entry of this user.
    queued: bool,

    touches: Vec<Touch>,
    purchases: Vec<Purchase>,
    spend: i64,
    bought: u32,
    logins: u32,
}

impl Default for User {
    fn default() -> User {
        User {
            history: Vec::new(),
            last: i64::MIN,
            anchor: Anchor::default(),
            last_number: 0,
            state: State::None,
            fired: false,
            queued: false,
            touches: Vec::new(),
            purchases: Vec::new(),
            spend: 0,
            bought: 0,
            logins: 0,
        }
    }
}

#[derive(Clone, Copy)]
struct Past {
    at: i64,
    number: u32,
    event: Event,
    /// After this event.
    state: State,
}

#[derive(Clone, Copy, Default, PartialEq)]
struct Anchor {
    at: i64,
    number: u32,
}

#[derive(Clone, Copy)]
struct Touch {
    at: i64,
    number: u32,
    key: u16,
}

#[derive(Clone, Copy)]
struct Purchase {
    at: i64,
    value: i64,
}

impl Yardstick {
    pub fn new() -> Yardstick {
        Yardstick::default()
    }

    /// Takes the clicks as they arrive.
    pub fn apply(&mut self, batch: &[Click]) {
        for click in batch {
            self.click(click);
        }
        self.fire();
    }

    /// The figures at the clock, which is the greatest timestamp so far.
    pub fn figures(&self) -> Figures {
        self.figures.clone()
    }

    fn click(&mut self, click: &Click) {
        let id = click.user as usize;
        if id >= self.users.len() {
            self.users.resize_with((id + 1).next_power_of_two(), User::default);
        }
        let user = &mut self.users[id];
        if self.seen.insert(click.number) && user.has(click) {
            return;
        }
        let f = &mut self.figures;
        f.clock = f.clock.max(click.timestamp);
        f.session_events += 1;
        if (click.timestamp, click.number) > (user.last, user.last_number) {
            user.append(click, f);
        } else {
            user.insert(click, f);
        }
        match click.event {
            Event::AdClick => user.touch(click, f),
            Event::Purchase => user.purchase(click, f),
            Event::Login => {
                f.logged_in += u64::from(user.logins == 0);
                user.logins += 1;
            }
            _ => {}
        }
        if user.armed() && !user.queued {
            user.queued = true;
            self.timers.push(Reverse((user.anchor.due(), click.user)));
        }
    }

    /// Fires what is due at the clock. A user's entry may be older than its timer, never later: anchors only grow.
    fn fire(&mut self) {
        while let Some(&Reverse((due, id))) = self.timers.peek()
            && due <= self.figures.clock
        {
            self.timers.pop();
            let user = &mut self.users[id as usize];
            user.queued = user.armed() && user.anchor.due() > self.figures.clock;
            if user.queued {
                self.timers.push(Reverse((user.anchor.due(), id)));
            } else if user.armed() {
                user.fired = true;
                self.figures.intent(id, user.anchor, 1);
                self.figures.moved(user.state, State::Abandoned);
            }
        }
    }
}

impl Anchor {
    fn due(self) -> i64 {
        self.at + ABANDONED_AFTER
    }
}

impl User {
    /// Whether the history has this messageId: where its timestamp says, as all of W1's resends do, or elsewhere.
    fn has(&self, click: &Click) -> bool {
        let order = (click.timestamp, click.number);
        self.history.binary_search_by_key(&order, |p| (p.at, p.number)).is_ok()
            || self.history.iter().any(|p| p.number == click.number)
    }

    fn armed(&self) -> bool {
        timed(self.state) && !self.fired
    }

    /// The state at the clock.
    fn now(&self) -> State {
        if self.fired { State::Abandoned } else { self.state }
    }

    /// A click later than all others of this user.
    fn append(&mut self, click: &Click, f: &mut Figures) {
        if self.history.is_empty() {
            f.sessions += 1;
            f.states[State::None as usize] += 1;
        } else {
            f.join(self.last, click.timestamp, 1);
        }
        let was = self.now();
        if timed(self.state) {
            let due = click.timestamp >= self.anchor.due();
            // the clock may have fired a timer before a click earlier than its deadline came
            if due != self.fired {
                f.intent(click.user, self.anchor, if due { 1 } else { -1 });
            }
            if due {
                self.state = State::Abandoned;
            }
            self.fired = false;
        }
        self.state = NEXT[self.state as usize][click.event as usize];
        if click.event == Event::AddToCart {
            self.anchor = Anchor { at: click.timestamp, number: click.number };
        }
        f.moved(was, self.state);
        (self.last, self.last_number) = (click.timestamp, click.number);
        self.history.push(Past { at: self.last, number: self.last_number, event: click.event, state: self.state });
    }

    /// A click before the last of this user.
    fn insert(&mut self, click: &Click, f: &mut Figures) {
        let order = (click.timestamp, click.number);
        let place = place_of(&self.history, |p| (p.at, p.number) < order);
        let next = self.history[place].at;
        if place > 0 {
            let before = self.history[place - 1].at;
            f.join(before, next, -1);
            f.join(before, click.timestamp, 1);
        }
        f.join(click.timestamp, next, 1);
        let new = Past { at: click.timestamp, number: click.number, event: click.event, state: State::None };
        self.history.insert(place, new);
        self.replay(place, click.user, f);
    }

    /// Runs the journey from the event inserted at `place` until it is where it was without that event.
    fn replay(&mut self, place: usize, user: u32, f: &mut Figures) {
        let mut old = self.before(place);
        let mut new = old;
        new.step(&self.history[place], user, f, 1);
        self.history[place].state = new.state;
        for past in &mut self.history[place + 1..] {
            if new == old {
                return;
            }
            old.step(past, user, f, -1);
            new.step(past, user, f, 1);
            past.state = new.state;
        }
        if new == old {
            return;
        }
        f.moved(self.now(), new.state);
        if self.fired {
            f.intent(user, self.anchor, -1);
        }
        (self.state, self.anchor, self.fired) = (new.state, new.anchor, false);
    }

    fn before(&self, place: usize) -> Run {
        let past = &self.history[..place];
        let state = past.last().map_or(State::None, |p| p.state);
        let added = past.iter().rev().filter(|_| timed(state)).find(|p| p.event == Event::AddToCart);
        Run { state, anchor: added.map_or(Anchor::default(), |p| Anchor { at: p.at, number: p.number }) }
    }

    fn touch(&mut self, click: &Click, f: &mut Figures) {
        let order = (click.timestamp, click.number);
        let place = place_of(&self.touches, |t| (t.at, t.number) < order);
        let from = place_of(&self.purchases, |p| p.at < click.timestamp);
        let to = from + self.purchases[from..].partition_point(|p| p.at <= click.timestamp + LOOKBACK);
        // later conversions whose path is full without this touch keep it
        let full = |p: &Purchase| self.touches[place..].get(PATH_MAX - 1).is_some_and(|t| t.at <= p.at);
        let to = from + self.purchases[from..to].partition_point(|p| !full(p));
        self.credit(from..to, f, -1);
        self.touches.insert(place, Touch { at: click.timestamp, number: click.number, key: key(click) });
        self.credit(from..to, f, 1);
    }

    fn purchase(&mut self, click: &Click, f: &mut Figures) {
        let place = place_of(&self.purchases, |p| p.at <= click.timestamp);
        self.purchases.insert(place, Purchase { at: click.timestamp, value: click.value });
        self.credit(place..place + 1, f, 1);
        let was = self.vip();
        f.paying += u64::from(self.bought == 0);
        self.bought += 1;
        self.spend += click.value;
        f.vip += u64::from(self.vip());
        f.vip -= u64::from(was);
    }

    fn vip(&self) -> bool {
        self.spend >= VIP_SPEND || self.bought >= VIP_PURCHASES
    }

    /// Adds or takes away the credit of some purchases.
    fn credit(&self, purchases: std::ops::Range<usize>, f: &mut Figures, sign: i64) {
        for p in &self.purchases[purchases] {
            let path = &self.touches[..place_of(&self.touches, |t| t.at <= p.at)];
            let path = &path[path.len().saturating_sub(PATH_MAX)..];
            let path = &path[path.partition_point(|t| t.at < p.at - LOOKBACK)..];
            f.credit(path, i128::from(p.value.max(0)) * 1000, sign);
        }
    }
}

/// Where the journey is at some place of a history. The anchor counts in timed states alone, which an anchor enters.
#[derive(Clone, Copy)]
struct Run {
    state: State,
    anchor: Anchor,
}

impl PartialEq for Run {
    fn eq(&self, other: &Run) -> bool {
        self.state == other.state && (!timed(self.state) || self.anchor == other.anchor)
    }
}

impl Run {
    fn step(&mut self, past: &Past, user: u32, f: &mut Figures, sign: i64) {
        if timed(self.state) && past.at >= self.anchor.due() {
            f.intent(user, self.anchor, sign);
            self.state = State::Abandoned;
        }
        self.state = NEXT[self.state as usize][past.event as usize];
        if past.event == Event::AddToCart {
            self.anchor = Anchor { at: past.at, number: past.number };
        }
    }
}

impl Figures {
    /// Two neighbours in time begin, or cease, to be neighbours.
    fn join(&mut self, a: i64, b: i64, sign: i64) {
        if b - a <= GAP {
            self.session_ms += sign * (b - a);
        } else {
            self.sessions = self.sessions.wrapping_add_signed(sign);
        }
    }

    fn moved(&mut self, from: State, to: State) {
        if from != to {
            self.states[from as usize] -= 1;
            self.states[to as usize] += 1;
        }
    }

    fn intent(&mut self, user: u32, anchor: Anchor, sign: i64) {
        let digest = intent_digest(user, anchor.due(), anchor.number);
        self.come_back = self.come_back.wrapping_add_signed(sign);
        self.come_back_digest = self.come_back_digest.wrapping_add(digest.wrapping_mul(sign as u64));
    }

    fn credit(&mut self, path: &[Touch], value: i128, sign: i64) {
        let last = path.last().map_or(DIRECT, |t| t.key) as usize;
        self.last_touch.0[last].add(BILLION, value, sign);
        if path.is_empty() {
            return self.linear.0[last].add(BILLION, value, sign);
        }
        let mut conversions = Shares::of(i128::from(BILLION), path.len());
        let mut values = Shares::of(value, path.len());
        for touch in path {
            self.linear.0[touch.key as usize].add(conversions.next() as i64, values.next(), sign);
        }
    }
}

impl Credit {
    fn add(&mut self, conversions: i64, value: i128, sign: i64) {
        self.conversions += sign * conversions;
        self.value += i128::from(sign) * value;
    }
}

const BILLION: i64 = 1_000_000_000;

/// The differences of the cumulative floors of `whole * k / n`, one after another, with two divisions in all.
struct Shares {
    each: i128,
    rest: usize,
    carry: usize,
    n: usize,
}

impl Shares {
    fn of(whole: i128, n: usize) -> Shares {
        let parts = n as i128;
        Shares { each: whole / parts, rest: (whole % parts) as usize, carry: 0, n }
    }

    fn next(&mut self) -> i128 {
        self.carry += self.rest;
        let over = self.carry >= self.n;
        self.carry -= if over { self.n } else { 0 };
        self.each + i128::from(over)
    }
}

/// The `partition_point`, sought from the end, which is where nearly all clicks go.
fn place_of<T>(sorted: &[T], before: impl Fn(&T) -> bool) -> usize {
    let n = sorted.len();
    let mut back = 1;
    while back <= n && !before(&sorted[n - back]) {
        back *= 2;
    }
    let low = n.saturating_sub(back);
    low + sorted[low..n - back / 2].partition_point(before)
}

/// A set of message numbers, which are dense.
#[derive(Default)]
struct Numbers(Vec<u64>);

impl Numbers {
    /// Whether it was there already.
    fn insert(&mut self, number: u32) -> bool {
        let (word, bit) = (number as usize / 64, 1 << (number % 64));
        if word >= self.0.len() {
            self.0.resize((word + 1).next_power_of_two(), 0);
        }
        let was = self.0[word] & bit != 0;
        self.0[word] |= bit;
        was
    }
}

/// Whether the abandonment timer runs in this state. It always does: `carted` is entered at an anchor, and `checkout`
/// from it, before its deadline.
fn timed(state: State) -> bool {
    matches!(state, State::Carted | State::Checkout)
}

const fn next_states() -> [[State; 11]; 7] {
    use State::*;
    let stay = [None, Landed, Browsing, Carted, Checkout, Purchased, Abandoned];
    let mut table = [[None; 11]; 7];
    let mut s = 0;
    while s < 7 {
        table[s] = [stay[s]; 11];
        table[s][Event::AddToCart as usize] = Carted;
        if !timed_index(s) {
            table[s][Event::PageView as usize] = Landed;
        }
        s += 1;
    }
    table[Landed as usize][Event::SectionView as usize] = Browsing;
    table[Purchased as usize][Event::SectionView as usize] = Browsing;
    table[Abandoned as usize][Event::SectionView as usize] = Browsing;
    table[Carted as usize][Event::CheckoutStarted as usize] = Checkout;
    table[Carted as usize][Event::Purchase as usize] = Purchased;
    table[Checkout as usize][Event::Purchase as usize] = Purchased;
    table
}

const fn timed_index(state: usize) -> bool {
    state == State::Carted as usize || state == State::Checkout as usize
}
