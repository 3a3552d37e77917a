//! Sessions: maximal runs of a person's activity in which neighbours are at most `gap` apart.
//!
//! The latest session is part of the core; the tape holds those before it. What a session is worth, whose touch it
//! began with, its pages and device are read off the other tapes and the history when asked.

use crate::event::Event;
use crate::plan::{Plan, Window, counts};
use crate::time::Millis;

use super::{Core, Effects, Instant, Left, NEVER, Root, Seen, State};

/// A run of activity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its first event's time, ms.
    pub start: Millis,
    /// Its last event's time so far, ms.
    pub end: Millis,
    /// How many events.
    pub events: u32,
    /// Its first event.
    pub first: Root,
    /// Whether an event of buying is in it.
    pub buying: bool,
}

impl Session {
    /// No session yet.
    pub(super) const NONE: Session =
        Session { start: NEVER, end: NEVER, events: 0, first: Root::SCHEDULE, buying: false };
}

/// Adds a session to the counts over all profiles.
fn count(session: &Session, sign: i64, effects: &mut Effects) {
    effects.counts[counts::SESSIONS] += sign;
    effects.counts[counts::EVENTS] += sign * i64::from(session.events);
    effects.counts[counts::MILLIS] += sign * (session.end - session.start);
    effects.counts[counts::BOUNCES] += sign * i64::from(session.events == 1);
}

impl Plan {
    /// Takes off the sessions after the first `length` ones.
    pub(super) fn uncount_sessions(&self, state: &State, length: usize, effects: &mut Effects) {
        state.sessions_from(length).for_each(|session| count(&session, -1, effects));
    }

    /// Adds the latest session at a mark.
    pub(super) fn recount_session(&self, core: &Core, effects: &mut Effects) {
        if core.visit.events > 0 {
            count(&core.visit, 1, effects);
        }
    }
}

impl State {
    /// How many sessions there are.
    pub fn session_count(&self) -> usize {
        self.tapes.sessions.len() + usize::from(self.core.visit.events > 0)
    }

    /// A session by its place.
    pub fn session(&self, place: usize) -> Option<Session> {
        match self.tapes.sessions.get(place) {
            Some(session) => Some(*session),
            None => (place + 1 == self.session_count()).then_some(self.core.visit),
        }
    }

    /// All sessions from a place on.
    pub fn sessions_from(&self, place: usize) -> impl DoubleEndedIterator<Item = Session> + '_ {
        (place..self.session_count()).filter_map(|place| self.session(place))
    }

    /// The place of the first session still in a window.
    pub(super) fn session_head(&self, plan: &Plan, window: usize) -> usize {
        self.words[plan.layout.session_windows + window] as usize
    }
}

impl Instant<'_> {
    /// An activity joins the latest session, or begins another.
    pub(super) fn visit(&mut self, event: &Event, seen: Seen<'_>) {
        let plan = self.plan;
        let counts = &mut self.effects.counts;
        let visit = &mut self.state.core.visit;
        let joins = visit.events > 0 && event.timestamp - visit.end <= plan.definitions.sessions.gap;
        counts[counts::EVENTS] += 1;
        if joins {
            counts[counts::MILLIS] += event.timestamp - visit.end;
            counts[counts::BOUNCES] -= i64::from(visit.events == 1);
        } else {
            if visit.events > 0 {
                self.state.tapes.sessions.push(*visit);
            }
            *visit = Session { start: event.timestamp, first: seen.root, ..Session::NONE };
            counts[counts::SESSIONS] += 1;
            counts[counts::BOUNCES] += 1;
        }
        visit.end = event.timestamp;
        visit.events += 1;
        visit.buying |= seen.rules.buying;
        self.state.core.activity = seen.root;
        for readers in &plan.session_readers {
            self.wake_all(readers);
        }
        if !joins {
            self.begun(event.timestamp);
        }
    }

    fn begun(&mut self, start: Millis) {
        let place = self.state.session_count() - 1;
        for window in 0..self.plan.session_windows.len() {
            if let Some(within) = self.plan.session_windows[window]
                && self.state.session_head(self.plan, window) == place
            {
                self.due_by(start + within);
            }
        }
    }

    /// Sessions that leave their windows at this instant.
    pub(super) fn session_windows(&mut self, left: &mut Vec<(Window, Left)>) {
        let plan = self.plan;
        for (window, within) in plan.session_windows.iter().enumerate() {
            let Some(within) = within else { continue };
            let mut last = None;
            while let Some(session) = self.state.session(self.state.session_head(plan, window)) {
                if session.start + within > self.at {
                    break;
                }
                last = Some(Left { at: session.start, accepted: true, root: session.first });
                self.state.words[plan.layout.session_windows + window] += 1;
            }
            if let Some(last) = last {
                left.push((Window::Sessions(window), last));
                self.wake_all(&plan.session_readers[window]);
            }
        }
    }

    pub(super) fn session_due(&self) -> Millis {
        let due = |(window, within): (usize, &Option<Millis>)| {
            Some(self.state.session(self.state.session_head(self.plan, window))?.start + (*within)?)
        };
        self.plan.session_windows.iter().enumerate().filter_map(due).min().unwrap_or(Millis::MAX)
    }
}
