//! Kernel errors with the step that met them, on their way to the daemon.

use std::io;

use sampan_wire::agent::Refusal;

/// Names the step in which an operation failed.
pub(crate) trait AtStage<T> {
    /// Turns the error into a [`Refusal::Failed`] of this stage.
    fn at(self, stage: &str) -> Result<T, Refusal>;
}

impl<T> AtStage<T> for io::Result<T> {
    fn at(self, stage: &str) -> Result<T, Refusal> {
        self.map_err(|error| failed(stage, &error))
    }
}

impl<T> AtStage<T> for rustix::io::Result<T> {
    fn at(self, stage: &str) -> Result<T, Refusal> {
        self.map_err(|error| Refusal::Failed { stage: stage.to_owned(), errno: error.raw_os_error() })
    }
}

/// A [`Refusal::Failed`] from an error that may carry the kernel's own words.
pub(crate) fn failed(stage: &str, error: &io::Error) -> Refusal {
    let errno = sampan_sys::mount::os_error(error).unwrap_or(libc::EIO);
    let stage = if error.raw_os_error().is_some() { stage.to_owned() } else { format!("{stage} ({error})") };
    Refusal::Failed { stage, errno }
}
