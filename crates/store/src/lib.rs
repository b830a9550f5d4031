//! Objects with revisions: compare-and-swap, list, watch and compaction on SQLite
