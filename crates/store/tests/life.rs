//! Watches while things happen, a process killed in the middle, two processes on one file.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use sampan_store::{Change, Key, Store, StoreError, StoreOptions};
use serde_json::json;

fn key(name: &str) -> Key {
    Key::namespaced("pods", "default", name)
}

#[tokio::test]
async fn a_watch_goes_from_replay_to_live() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(&directory.path().join("store.db")).expect("a store");
    let first = store.create(key("a"), json!({"n": 1})).await.expect("created");
    let mut watch = store.watch("pods", Some("default"), first.revision - 1).expect("a watch");
    let mut elsewhere = store.watch("pods", Some("other"), first.revision - 1).expect("a watch");
    assert_eq!(watch.next().await.expect("an event").kind, Change::Added);
    let waiting = tokio::spawn(async move {
        let event = watch.next().await.expect("an event");
        (event.kind, event.previous.as_ref().map(|before| before.value["n"].clone()), event.object.value["n"].clone())
    });
    store.update(&key("a"), Some(first.revision), json!({"n": 2})).await.expect("updated");
    assert_eq!(waiting.await.expect("no panic"), (Change::Modified, Some(json!(1)), json!(2)));
    assert!(elsewhere.try_next().expect("no error").is_none());
    assert_eq!(elsewhere.progress(), store.revision(), "a bookmark may pass over what others do");
}

#[tokio::test]
async fn who_falls_behind_is_told_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = StoreOptions { history_events_max: 4, ..StoreOptions::default() };
    let store = Store::open_with(&directory.path().join("store.db"), options).expect("a store");
    let start = store.revision();
    let mut slow = store.watch("pods", None, start).expect("a watch");
    for number in 0..20 {
        store.create(key(&format!("p{number}")), json!({})).await.expect("created");
    }
    // Compaction follows the answer; the next commit comes after it.
    store.create(key("last"), json!({})).await.expect("created");
    assert!(matches!(slow.next().await, Err(StoreError::Gone { .. })));
    assert!(matches!(store.watch("pods", None, start), Err(StoreError::Gone { .. })));
}

#[tokio::test]
async fn one_file_has_one_owner() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.db");
    let _store = Store::open(&path).expect("a store");
    assert!(matches!(Store::open(&path), Err(StoreError::Open { .. })));
}

#[tokio::test]
async fn what_is_too_large_or_no_object_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(&directory.path().join("store.db")).expect("a store");
    let large = json!({"text": "x".repeat(sampan_store::limits::OBJECT_BYTES_MAX)});
    assert!(matches!(store.create(key("a"), large).await, Err(StoreError::TooLarge { .. })));
    assert!(matches!(store.create(key("a"), json!([])).await, Err(StoreError::NotAnObject(_))));
    assert_eq!(store.revision(), 1);
}

const CHILD: &str = "SAMPAN_STORE_TEST_CHILD";

/// Only does something when the test below runs it in a process of its own: writes and says what was answered.
#[test]
#[expect(clippy::print_stdout, reason = "the parent reads what was committed")]
fn child_that_is_killed() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let store = Store::open(std::path::Path::new(&path)).expect("a store");
        for number in 0_u64.. {
            let made = store.create(key(&format!("p{number}")), json!({"number": number})).await.expect("created");
            println!("committed {number} {}", made.revision);
        }
    });
}

#[tokio::test]
async fn what_was_answered_survives_a_kill() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.db");
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "child_that_is_killed", "--nocapture"])
        .env(CHILD, &path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut committed = Vec::new();
    for line in lines.map_while(Result::ok) {
        let mut words = line.split_once("committed ").map_or("", |(_, rest)| rest).split(' ');
        if let (Some(Ok(number)), Some(Ok(revision))) =
            (words.next().map(str::parse::<u64>), words.next().map(str::parse::<u64>))
        {
            committed.push((number, revision));
        }
        if committed.len() == 500 {
            child.kill().expect("killed");
        }
    }
    child.wait().expect("ended");
    assert!(committed.len() >= 500);
    let store = Store::open(&path).expect("a store");
    for (number, revision) in &committed {
        let object = store.get(&key(&format!("p{number}"))).await.expect("an answer").expect("an object");
        assert_eq!((object.value["number"].as_u64(), object.revision), (Some(*number), *revision));
    }
    let mut watch = store.watch("pods", None, 1).expect("the history is there too");
    assert_eq!(watch.next().await.expect("an event").object.key.name, "p0");
}
