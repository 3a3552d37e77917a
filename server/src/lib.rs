//! The process.
pub mod rows;
