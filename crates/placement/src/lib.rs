//! Cluster snapshot and pod in, decision with reasons out
