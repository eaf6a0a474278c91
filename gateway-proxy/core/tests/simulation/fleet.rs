//! The fleet against a naive model of the bucket: processes that die, freeze, are cut off, see late and
//! out of sorts; and one question asked after every step: does any shard have two owners?

mod bucket;
mod faults;
mod grants;
mod process;
mod world;
