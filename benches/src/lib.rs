//! End-to-end benches: the programs `load` and `consume`. The criterion benches stand in `benches/`.

pub mod consume;
pub mod load;
