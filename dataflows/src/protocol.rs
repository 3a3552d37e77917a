//! The stairs between the two floors: what the server may ask of the engine, and what the engine says.
//!
//! Everything travels one road. A [`Step`] closes a logical time; its records, corrections, definitions and questions
//! all belong to that time, and a question is answered exactly there, with all of the step and nothing after it.

use std::sync::Arc;

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::identity;
use crate::plan::Plan;
use crate::profile::answers::{IntentRow, Key, Page, ProfileRow, Rows, SessionRow, View};
use crate::profile::sums::{Credited, Sought, Span, Visits};
use crate::time::Millis;
use crate::total::Total;

/// What enters the engine, to every worker alike.
#[derive(Clone, Debug)]
pub enum Command {
    /// One step; each worker's share of the records is in its own copy.
    Step(Step),
    /// No more steps will come; the workers end.
    Stop,
}

/// One step of logical time.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its number: steps are numbered 1, 2, 3, …
    pub number: u64,
    /// The clock at its end, ms; never lower than that of an earlier step.
    pub clock: Millis,
    /// What is recorded, in chunks that travel as they are.
    pub records: Vec<Vec<Record>>,
    /// What changes who is whom, each with its log position.
    pub links: Vec<(u64, identity::Change)>,
    /// The definitions that hold from this step on, if they change with it.
    pub plan: Option<Arc<Plan>>,
    /// Questions, each under a number that its answers carry.
    pub questions: Vec<(u64, Question)>,
}

/// Something on the one road: what is recorded, and what each worker adds to a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Record {
    /// An accepted event.
    Event(Event),
    /// An event that came before this log position is taken back: own id, message id.
    Retract(u64, EcoString, EcoString),
    /// A worker's question, under its number.
    Ask(usize, u64, Box<Question>),
    /// The clock goes on, on a worker.
    Tick(usize),
}

/// A question; it asks for what is true at its step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Question {
    /// One profile, by any of its ids.
    Profile(EcoString),
    /// A profile's rows of one view, newest first.
    History {
        /// Any id of the profile.
        id: EcoString,
        /// Which rows.
        view: View,
        /// Which part of them.
        page: Page,
    },
    /// Members of a segment in order of public id, after one.
    Members {
        /// The segment's name.
        segment: EcoString,
        /// Only ids after this one.
        after: Option<EcoString>,
        /// How many at most.
        limit: usize,
    },
    /// The next deadlines of a journey's timers.
    Deadlines {
        /// The journey's name.
        journey: EcoString,
        /// Only those so far from the clock at most, ms.
        within: Option<Millis>,
        /// Only those after this one.
        after: Option<Deadline>,
        /// How many at most.
        limit: usize,
    },
    /// Sessions of all profiles that began in a span, newest first.
    Sessions {
        /// When they began.
        span: Span,
        /// Only those before this one: its start, its profile's public id.
        before: Option<(Millis, EcoString)>,
        /// How many at most.
        limit: usize,
    },
    /// Sums over the sessions that began in a span.
    Visits(Span),
    /// Credit of some conversions.
    Credit(Sought),
    /// Conversions that followed the intents of each campaign.
    Followed,
    /// Everything that is counted over people.
    Totals,
    /// All rows of one view.
    Dump(View),
}

impl Question {
    /// The id whose person it is about, if it is about one.
    pub fn about(&self) -> Option<&EcoString> {
        match self {
            Question::Profile(id) | Question::History { id, .. } => Some(id),
            _ => None,
        }
    }
}

/// What leaves the engine.
#[derive(Clone, Debug)]
pub enum Response {
    /// A worker has closed a step: everything of it is true.
    Closed {
        /// The worker.
        worker: usize,
        /// The step's number.
        number: u64,
        /// Intents that came (1) and went (-1) with this step.
        intents: Vec<(IntentRow, i8)>,
        /// Log positions of accepted calls whose link was refused.
        refused: Vec<u64>,
    },
    /// A worker's part of an answer; each worker gives exactly one per question.
    Answer {
        /// The worker.
        worker: usize,
        /// The question's number.
        question: u64,
        /// Its part.
        part: Answer,
    },
}

/// A worker's part of an answer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It has nothing to say to this question.
    Nothing,
    /// A profile.
    Profile(Box<ProfileRow>),
    /// Rows of every profile, in no order.
    Rows(Rows),
    /// Rows of one profile, newest first, and the key of the last if there are more.
    History(Rows, Option<Key>),
    /// Members: public id, since when.
    Members(Vec<(EcoString, Millis)>),
    /// Deadlines: when, public id, what is emitted, the state moved to; and the totals of the same time.
    Deadlines(Vec<Deadline>, Vec<(Total, i128)>),
    /// Sessions, newest first.
    Sessions(Vec<SessionRow>),
    /// Sums over sessions.
    Visits(Visits),
    /// Credit.
    Credit(Credited),
    /// Conversions that followed, by the campaign's number; and the totals of the same time.
    Followed(Vec<u64>, Vec<(Total, i128)>),
    /// Totals that this worker keeps.
    Totals(Vec<(Total, i128)>),
}

/// A deadline of a timer: when, public id, what is emitted, the state moved to.
pub type Deadline = (Millis, EcoString, Option<EcoString>, Option<EcoString>);
