//! Thalweg, the process: brings events in, keeps the log, lets answers and triggers out.
//!
//! Everything that is true of the events is the engine's to say; here is what must wait, be written or be sent. The
//! engine is reached by the two enums of its protocol alone.

pub mod audit; // who changed what, in a chain
pub mod book; // definitions, and how they came to be
pub mod cli; // what may be typed
pub mod clock; // the wall, read in one place
pub mod cluster; // several processes as one
pub mod demo; // visitors made up
pub mod desk; // what processes ask each other
pub mod door; // bodies of events taken apart
pub mod dry_run; // files under several definitions
pub mod erasing; // bodies destroyed
pub mod follow; // views that somebody follows
pub mod http; // the doors
pub mod hub; // the way to the writer
pub mod log; // the only truth
pub mod metrics; // numbers for Prometheus
pub mod moment; // instants as people write them
pub mod outbox; // intents on their way into the world
pub mod problem; // errors as they are told
pub mod pseudonyms; // what is kept in the place of what is private
pub mod recommend; // what a person may like
pub mod record; // what stands in it
pub mod replay; // files through the engine
pub mod retaining; // what is left of it when it is old
pub mod rows; // rows as JSON
pub mod stream; // a broker as the log
pub mod templates; // messages
pub mod triggers; // deliveries
pub mod writer; // the one thread that puts everything in order
