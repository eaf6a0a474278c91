//! End-to-end benches: the program `load`. The criterion benches stand in `benches/`.

pub mod load;
