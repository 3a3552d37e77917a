//! Sessions: maximal runs of a person's activity in which neighbours are at most `gap` apart.
//!
//! The open session is part of the core; the tape holds all of them, the last one being the open one. What a session is
//! worth, whose touch it began with, its pages and device are read off the other tapes and the history when asked.

use crate::event::Event;
use crate::plan::{Plan, Window, counts};
use crate::time::Millis;

use super::{Effects, Instant, Left, Root};

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

/// What marks keep of sessions.
#[derive(Clone, Debug)]
pub struct Visits {
    /// The open session, as it stands.
    pub open: Option<Session>,
    /// For each window over sessions, the place of the first session still in it.
    pub heads: Box<[u32]>,
}

impl Visits {
    /// No sessions yet.
    pub fn new(plan: &Plan) -> Self {
        Visits { open: None, heads: vec![0; plan.session_windows.len()].into() }
    }
}

/// Adds a session to the counts over all profiles.
fn count(session: &Session, sign: i64, effects: &mut Effects) {
    effects.counts[counts::SESSIONS] += sign;
    effects.counts[counts::EVENTS] += sign * i64::from(session.events);
    effects.counts[counts::MILLIS] += sign * (session.end - session.start);
    effects.counts[counts::BOUNCES] += sign * i64::from(session.events == 1);
}

impl Plan {
    /// Takes off the sessions after `length`, and the last one before, which may be open at the mark.
    pub(super) fn uncount_sessions(&self, sessions: &[Session], length: usize, effects: &mut Effects) {
        sessions[length.saturating_sub(1)..].iter().for_each(|session| count(session, -1, effects));
    }

    /// Adds the session that is the last one at a mark.
    pub(super) fn recount_sessions(&self, sessions: &[Session], effects: &mut Effects) {
        sessions.last().into_iter().for_each(|session| count(session, 1, effects));
    }
}

impl Instant<'_> {
    /// An activity joins the open session, or begins another.
    pub(super) fn visit(&mut self, event: &Event, root: Root) {
        let gap = self.plan.definitions.sessions.gap;
        let tapes = &mut self.state.tapes;
        let mut session = match self.state.core.visits.open {
            Some(open) if event.timestamp - open.end <= gap => {
                count(&open, -1, self.effects);
                tapes.sessions.pop();
                open
            }
            _ => Session { start: event.timestamp, end: event.timestamp, events: 0, first: root, buying: false },
        };
        session.end = event.timestamp;
        session.events += 1;
        session.buying |= self.plan.rules[event.name.0 as usize].buying;
        let begins = session.events == 1;
        self.put(session);
        if begins {
            self.begun(event.timestamp);
        }
    }

    fn put(&mut self, session: Session) {
        count(&session, 1, self.effects);
        self.state.core.visits.open = Some(session);
        self.state.tapes.sessions.push(session);
        let plan = self.plan;
        for readers in &plan.session_readers {
            self.wake_all(readers);
        }
    }

    fn begun(&mut self, start: Millis) {
        let place = self.state.tapes.sessions.len() as u32 - 1;
        for window in 0..self.plan.session_windows.len() {
            if let Some(within) = self.plan.session_windows[window]
                && self.state.core.visits.heads[window] == place
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
            while let Some(session) = self.state.tapes.sessions.get(self.state.core.visits.heads[window] as usize) {
                if session.start + within > self.at {
                    break;
                }
                last = Some(Left { at: session.start, accepted: true, root: session.first });
                self.state.core.visits.heads[window] += 1;
            }
            if let Some(last) = last {
                left.push((Window::Sessions(window), last));
                self.wake_all(&plan.session_readers[window]);
            }
        }
    }

    pub(super) fn session_due(&self) -> Millis {
        let due = |(window, within): (usize, &Option<Millis>)| {
            let head = self.state.core.visits.heads[window] as usize;
            Some(self.state.tapes.sessions.get(head)?.start + (*within)?)
        };
        self.plan.session_windows.iter().enumerate().filter_map(due).min().unwrap_or(Millis::MAX)
    }
}
