//! What Thalweg keeps true of the events: the library under the server.
//!
//! Every answer is a pure function of the accepted records, the corrections, the definitions and the clock. The
//! modules are listed from the ground up, in reading order; each names only those before it. Nothing here reads a
//! clock, a file, a socket or the environment: time comes in with each step.

#![deny(missing_docs)]

pub mod admission; // what becomes of a record
pub mod agent; // what devices say of themselves
pub mod condition; // what is asked of it
pub mod definitions; // what the marketer wrote
pub mod engine; // who turns the wheel
pub mod event; // what happened
pub mod filter; // which calls a condition selects
pub mod history; // the one mechanism: a history and what it folds to
pub mod identity; // who is whom
pub mod intake; // from lines to records
pub mod json; // how it is read
pub mod keyed; // histories by key
pub mod number; // exact decimals
pub mod place; // where a record stands
pub mod plan; // the definitions, ready to run
pub mod profile; // everything that is true of one person
pub mod protocol; // what may be asked of the engine, and what it says
pub mod retain; // what is left of it when it is old
pub mod strike; // what of others names who was erased
pub mod time; // instants and spans, in ms
pub mod total; // what is counted over people
pub mod value; // what events carry
pub mod vocabulary; // what of an event that makes worth keeping
