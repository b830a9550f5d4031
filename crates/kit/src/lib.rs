//! What every room needs and no crate of others gives just so: quantities, ids, back-off, gates, error chains
