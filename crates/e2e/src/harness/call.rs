//! One call of a command: how it is made, and what came of it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::process::Running;
use super::terminal::{Size, Terminal};

/// A call that takes longer is stuck.
const DEADLINE: Duration = Duration::from_secs(60);

/// A command that is about to be called.
#[derive(Debug)]
pub struct Call {
    command: Command,
    input: Option<Vec<u8>>,
}

impl Call {
    /// A call of `program`; standard input is empty unless said otherwise.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self { command: Command::new(program), input: None }
    }

    /// Adds words.
    pub fn args<Word: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = Word>) -> Self {
        self.command.args(words);
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets its directory.
    pub fn directory(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Gives it this on standard input.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// Runs it to its end, whatever that is.
    pub fn finish(mut self) -> Result<Finished> {
        let input = self.input.take();
        let mut running = self.start()?;
        // Input goes beside the output, or both would wait for each other.
        let pipe = running.take_input();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if let (Some(mut pipe), Some(input)) = (pipe, input) {
                    // A command that ends before it has read everything is no error of ours.
                    drop(std::io::Write::write_all(&mut pipe, &input));
                }
            });
            running.finish(DEADLINE)
        })
    }

    /// Runs it to its end, which must be a good one; gives what it printed.
    pub fn ok(self) -> Result<String> {
        Ok(self.finish()?.expect(0)?.text())
    }

    /// Starts it in the background; its input is a pipe.
    pub fn start(mut self) -> Result<Running> {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::spawn(self.command)
    }

    /// Starts it on a terminal of its own.
    pub fn on_terminal(self, size: Size) -> Result<Terminal> {
        Terminal::spawn(&self.command, size)
    }
}

/// How a call ended.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub words: String,
    /// Its exit code; 128 and the signal's number when it was killed.
    pub code: i32,
    /// What it wrote.
    pub output: Vec<u8>,
    /// What it complained about.
    pub errors: Vec<u8>,
}

impl Finished {
    /// Standard output without the blanks around it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).trim().to_owned()
    }

    /// Standard error without the blanks around it.
    pub fn complaint(&self) -> String {
        String::from_utf8_lossy(&self.errors).trim().to_owned()
    }

    /// Insists on an exit code.
    pub fn expect(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == code,
            "`{}` ended with {} instead of {code}\n  stdout: {}\n  stderr: {}",
            self.words,
            self.code,
            self.text(),
            self.complaint()
        );
        Ok(self)
    }

    /// Insists on a failure with exactly one line on standard error in which every one of `words` stands.
    pub fn fails_with(self, code: i32, words: &[&str]) -> Result<()> {
        let this = self.expect(code)?;
        let complaint = this.complaint();
        ensure!(complaint.lines().count() == 1, "`{}` says not one line but: {complaint:?}", this.words);
        ensure!(complaint.starts_with("sampan: "), "`{}` says {complaint:?}", this.words);
        let lower = complaint.to_lowercase();
        let missing: Vec<_> = words.iter().filter(|word| !lower.contains(&word.to_lowercase())).collect();
        ensure!(missing.is_empty(), "`{}` does not mention {missing:?}: {complaint:?}", this.words);
        Ok(())
    }

    /// Standard output as JSON.
    pub fn json(self) -> Result<serde_json::Value> {
        let this = self.expect(0)?;
        serde_json::from_slice(&this.output)
            .with_context(|| format!("`{}` printed no JSON: {}", this.words, this.text()))
    }
}
