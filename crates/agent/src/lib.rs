//! PID 1 of every pod: starts containers, reaps them, writes their logs, runs execs
