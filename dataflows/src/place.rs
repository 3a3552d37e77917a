//! Places: where a record stands in the log, or in the logs of several processes, as one number that orders them all.
//!
//! A place is a logical time, then the process whose log holds the record, then the record's number in there. So what
//! is decided by place is decided alike however the records of one time are shared out and gathered again.

/// Bits of a record's number among those of its time and process.
const INDEX_BITS: u32 = 18;
/// Bits of a process's number.
const PROCESS_BITS: u32 = 4;
/// Records that one process may have at one time.
pub const RECORDS_MAX: usize = 1 << INDEX_BITS;
/// Processes that there may be.
pub const PROCESSES_MAX: usize = 1 << PROCESS_BITS;

/// The place of a record: its time, its process, its number.
pub fn place(time: u64, process: usize, index: usize) -> u64 {
    debug_assert!(process < PROCESSES_MAX && index < RECORDS_MAX, "{process}, {index}");
    (time << PROCESS_BITS | process as u64) << INDEX_BITS | index as u64
}

/// The time of a place.
pub fn time_of(place: u64) -> u64 {
    place >> (INDEX_BITS + PROCESS_BITS)
}

/// The process whose log holds it.
pub fn process_of(place: u64) -> usize {
    (place >> INDEX_BITS) as usize % PROCESSES_MAX
}

/// The number of a record among those of its time and process.
pub fn index_of(place: u64) -> usize {
    place as usize % RECORDS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_ordered_by_time_then_process_then_number() {
        let ordered = [place(7, 1, 0), place(7, 1, 9), place(7, 2, 0), place(8, 0, 0)];
        assert!(ordered.is_sorted());
        let parts = ordered.map(|at| (time_of(at), process_of(at), index_of(at)));
        assert_eq!(parts, [(7, 1, 0), (7, 1, 9), (7, 2, 0), (8, 0, 0)]);
    }
}
