//! Behaviour of the three stages together: who wins, what conflicts, what messages name.
