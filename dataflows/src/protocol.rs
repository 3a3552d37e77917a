//! The stairs between the two floors: what the server may ask of the engine, and what the engine says.
//!
//! Everything travels one road. A [`Step`] closes a logical time; its records, corrections, definitions and questions
//! all belong to that time, and a question is answered exactly there, with all of the step and nothing after it.

use std::collections::BTreeSet;
use std::sync::Arc;

use ecow::EcoString;
use serde::{Deserialize, Serialize};

use crate::admission::Verdict;
use crate::definitions::Definitions;
use crate::event::Event;
use crate::identity::{Erasure, Linked, Settled, Unlinked};
use crate::intake::Prepared;
use crate::plan::Plan;
use crate::profile::answers::{IntentRow, Key, Page, ProfileRow, Rows, SessionRow, View};
use crate::profile::explain::Explained;
use crate::profile::sums::{Credited, Sought, Span, Visits};
use crate::profile::trial::{Outcome, Trial};
use crate::time::Millis;
use crate::total::Total;

/// What enters the engine.
#[derive(Clone, Debug)]
pub enum Command {
    /// A step. In every process it has the same number, and that process's records.
    Step(Step),
    /// All that this process has of steps up to this number is durable.
    Durable(u64),
    /// Something that one process has to tell another: to which, and what. It belongs to no step.
    Letter(usize, Vec<u8>),
    /// No more steps will come.
    Stop,
}

/// What leaves the engine.
#[derive(Clone, Debug)]
pub enum Response {
    /// A step is closed.
    Closed(Closed),
    /// Another process tells something: which, and what.
    Letter(usize, Vec<u8>),
}

/// One step of logical time.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its number: steps are numbered 1, 2, 3, …
    pub number: u64,
    /// The last log position that it includes.
    pub position: u64,
    /// The clock at its end, ms, as far as records do not move it further; never lower than that of an earlier step.
    pub clock: Millis,
    /// What acceptance asks of its records.
    pub terms: Terms,
    /// Whether all that this process has of it, and of steps before it, is durable. Until it is in every process,
    /// nothing of the step is told in any.
    pub is_durable: bool,
    /// Whether intents that come with it may go out: if they may at once, those whom they are for come with them.
    pub sends: bool,
    /// What is recorded, in chunks that travel as they are. Positions grow from chunk to chunk, and in each.
    pub records: Vec<Vec<Record>>,
    /// Definitions that are to hold as soon as every history is prepared for them. What they name stands on all events
    /// by now. Those that were being prepared are forgotten.
    pub plan: Option<Arc<Plan>>,
    /// Questions, each under a number that its answer carries.
    pub questions: Vec<(u64, Question)>,
}

/// What acceptance asks of records, as the definitions said when they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// How late a record may be, ms; none: as late as it likes.
    pub lateness: Option<Millis>,
    /// No link makes a profile of more ids.
    pub ids_max: u32,
}

impl Default for Terms {
    fn default() -> Self {
        Terms::of(&Definitions::default())
    }
}

impl Terms {
    /// Those of definitions.
    pub fn of(definitions: &Definitions) -> Terms {
        Terms { lateness: definitions.lateness, ids_max: definitions.identity.max_ids }
    }
}

/// Records in a chunk: of a size that allocators hand out again, and not so few that workers starve.
pub(crate) const CHUNK: usize = 128;

impl Step {
    /// The first step, with nothing in it.
    pub fn first() -> Step {
        Step {
            number: 1,
            position: 0,
            clock: 0,
            terms: Terms::default(),
            is_durable: true,
            sends: false,
            records: Vec::new(),
            plan: None,
            questions: Vec::new(),
        }
    }

    /// Something is recorded next.
    pub fn record(&mut self, record: Record) {
        match self.records.last_mut() {
            Some(chunk) if chunk.len() < CHUNK => chunk.push(record),
            _ => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(record);
                self.records.push(chunk);
            }
        }
    }

    /// How many records and questions it holds.
    pub fn len(&self) -> usize {
        self.records.iter().map(Vec::len).sum::<usize>() + self.questions.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends this step: gives it, and is the next.
    pub fn close(&mut self) -> Step {
        let Step { number, position, clock, terms, sends, .. } = *self;
        let next = Step { number: number + 1, position, clock, terms, sends, ..Step::first() };
        std::mem::replace(self, next)
    }
}

/// Something recorded, with its place in the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)] // nearly all are events, which a box would only scatter
pub enum Record {
    /// A call.
    Event(Prepared),
    /// The clock goes on to this instant.
    Clock(u64, Millis),
    /// An event is taken back: by which clock, own id, message id, by what admission knows it.
    Retract(u64, Millis, EcoString, EcoString, u128),
    /// The edge between two ids is struck: by which clock.
    Unlink(u64, Millis, EcoString, EcoString),
    /// What came is no event: a dead letter.
    Unreadable(u64),
    /// An event that came before, as definitions to come read it: with what they name of it, too.
    Reread(Event),
    /// Ids were erased: what is dated up to an instant is not taken of them any more, nor as naming them.
    Bar(Box<Bar>),
    /// Somebody is erased. Their ids are barred besides.
    Erase(Box<Erasure>),
    /// A call whose body was destroyed since.
    Destroyed(Destroyed),
    /// A call that was decided on by what is not known any more.
    Decided(u64, Verdict),
    /// All links that were.
    Settled(Box<Settled>),
}

/// Ids that were erased, told to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bar {
    /// The place of the erasure.
    pub position: u64,
    /// The worker.
    pub worker: u64,
    /// Up to which instant, ms.
    pub until: Millis,
    /// The marks of the ids.
    pub marks: Vec<u128>,
}

/// What is left of a call of somebody who was erased: as much as later calls are decided on by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destroyed {
    /// Its place in the log.
    pub position: u64,
    /// When it happened, ms: it may have moved the clock.
    pub timestamp: Millis,
    /// Whether it was too late by its stamp.
    pub is_late: bool,
    /// The route of its id.
    pub route: u64,
    /// By what admission knows it.
    pub entry: u128,
}

impl Record {
    /// Its place in the log.
    pub fn position(&self) -> u64 {
        match self {
            Record::Event(prepared) => prepared.event.position,
            Record::Reread(event) => event.position,
            Record::Erase(erasure) => erasure.position,
            Record::Bar(bar) => bar.position,
            Record::Destroyed(destroyed) => destroyed.position,
            // Before all others.
            Record::Settled(_) => 0,
            Record::Clock(position, _)
            | Record::Retract(position, ..)
            | Record::Unlink(position, ..)
            | Record::Decided(position, _)
            | Record::Unreadable(position) => *position,
        }
    }
}

/// A question; it asks for what is true at its step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Question {
    /// One profile, by any of its ids.
    Profile(EcoString),
    /// The same, and the links that make it one.
    Person(EcoString),
    /// Whether an edge joins two ids.
    Linked(EcoString, EcoString),
    /// Links that were refused, or not made, after one.
    Unlinked {
        /// Only those after this one.
        after: Option<Unlinked>,
        /// How many at most.
        limit: usize,
    },
    /// Who would be one person without these events: own id, message id.
    Apart(Vec<(EcoString, EcoString)>),
    /// Which of these events stand: own id, log position.
    Standing(Vec<(EcoString, u64)>),
    /// All that is kept of one profile, by any of its ids.
    Whole(EcoString),
    /// One profile as of an instant, with the records, corrections and identity of now, and the links that make it one.
    ProfileAt(EcoString, Millis),
    /// Why one is in a segment or is not.
    Explain {
        /// Any id of the profile.
        id: EcoString,
        /// The segment's name.
        segment: EcoString,
        /// As of which instant; none: now.
        at: Option<Millis>,
    },
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
    /// The rows of a view as they are; and from the next step on their changes, or no longer.
    Watch(Watched, bool),
    /// Conversions that followed the intents of each campaign.
    Followed,
    /// Everything that is counted over people.
    Totals,
    /// All rows of one view.
    Dump(View),
    /// What other definitions would make of all. Every worker prepares some of it when it is asked, and it is asked
    /// again under the same number until all have their part ready at one step; the trial goes with the first.
    WhatIf(u64, Option<Arc<Trial>>),
    /// That will not be asked again.
    Forget(u64),
}

/// A view whose changes can be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Watched {
    /// Who belongs to which segment since when.
    Segments,
    /// Who is in which state of which journey since when, and what is due there.
    Journeys,
    /// Sessions.
    Sessions,
    /// Credit by model, channel and campaign.
    Attribution,
}

impl Question {
    /// The id whose person it is about, if it is about one.
    pub fn about(&self) -> Option<&EcoString> {
        match self {
            Question::Profile(id)
            | Question::Person(id)
            | Question::Whole(id)
            | Question::ProfileAt(id, _)
            | Question::Explain { id, .. }
            | Question::History { id, .. } => Some(id),
            _ => None,
        }
    }

    /// Whether who is linked to whom is the answer, or a part of it.
    pub fn links(&self) -> bool {
        let of_one = matches!(self, Question::Person(_) | Question::ProfileAt(..));
        of_one || matches!(self, Question::Linked(..) | Question::Unlinked { .. } | Question::Apart(_))
    }

    /// Whether what is counted over people is the answer, or a part of it.
    pub fn counts(&self) -> bool {
        match self {
            Question::Totals | Question::Deadlines { .. } | Question::Followed => true,
            Question::Watch(view, follows) => *follows && *view == Watched::Attribution,
            _ => false,
        }
    }
}

/// A step is closed, on every worker: everything of it is true, and durable.
#[derive(Clone, Debug, Default)]
pub struct Closed {
    /// The step's number.
    pub number: u64,
    /// The last log position that it includes.
    pub position: u64,
    /// The clock at its end, ms.
    pub clock: Millis,
    /// Intents that came (1) and went (-1) with it.
    pub intents: Vec<(IntentRow, i8)>,
    /// Whom intents came for that may go out at once, as they are then; told to the first process, by which they leave.
    pub people: Vec<ProfileRow>,
    /// How many events were accepted in it.
    pub accepted: u64,
    /// Which definitions hold from it on, if others do: those of the first plan that a step bore are 1, and so on.
    pub switched: Option<u64>,
    /// Profiles that are prepared for definitions to come, and all there are; zeros: none are being prepared for.
    pub prepared: (u64, u64),
    /// Log positions of records that were not taken as they are, wherever they came in.
    pub verdicts: Vec<(u64, Verdict)>,
    /// Who was erased, and how many events of theirs had been accepted.
    pub erased: Vec<(Erasure, u64)>,
    /// Rows of views that this process follows that came (1) and went (-1), as JSON.
    pub rows: Vec<(Watched, String, i8)>,
    /// Changes of credit, where this process follows it.
    pub credit: Vec<(Total, i128)>,
    /// Answers, by the numbers of their questions: each in parts that the workers give.
    pub answers: Vec<(u64, Answer)>,
}

/// A worker's part of an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// A profile.
    Profile(Box<ProfileRow>),
    /// The links that make somebody one.
    Links(Vec<Linked>),
    /// Whether an edge joins two ids.
    Linked(bool),
    /// Links that were refused or not made, in order.
    Unlinked(Vec<Unlinked>),
    /// The ids of each person who would be another one.
    Apart(Vec<BTreeSet<EcoString>>),
    /// Those of the events asked for that stand: log position, public id.
    Standing(Vec<(u64, EcoString)>),
    /// A profile, and its rows of each view that has any, newest first.
    Whole(Box<ProfileRow>, Vec<Rows>),
    /// Why a profile is in a segment or is not.
    Explained(Box<Explained>),
    /// Rows of every profile, in no order.
    Rows(Rows),
    /// Rows of one profile, newest first, and the key of the last if there are more.
    History(Rows, Option<Key>),
    /// Members: public id, since when.
    Members(Vec<(EcoString, Millis)>),
    /// Deadlines; totals of the same time come with them.
    Deadlines(Vec<Deadline>),
    /// Sessions, newest first.
    Sessions(Vec<SessionRow>),
    /// Sums over sessions.
    Visits(Visits),
    /// Credit.
    Credit(Credited),
    /// Rows of a view that is followed, as JSON.
    Watched(Vec<String>),
    /// Conversions that followed, by the campaign's number; totals of the same time come with them.
    Followed(Vec<u64>),
    /// Totals that this worker keeps.
    Totals(Vec<(Total, i128)>),
    /// A trial is being prepared: so many profiles of so many are.
    Trying(u64, u64),
    /// What each of the definitions tried makes of this worker's profiles.
    Tried(Vec<Outcome>),
}

/// A deadline of a timer: when, public id, what is emitted, the state moved to.
pub type Deadline = (Millis, EcoString, Option<EcoString>, Option<EcoString>);
