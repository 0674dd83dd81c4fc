//! The continuity of one channel. Whatever happens to it, whatever heads are forged, and whatever
//! its history holds: no genuine event is lost in silence, doubled or out of order, the waiting
//! events are bounded, and the history is not asked without end. The simulation checks this; the
//! input chooses what happens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate::gateway::live_in_simulation;

fuzz_target!(|input: &[u8]| live_in_simulation(input));
