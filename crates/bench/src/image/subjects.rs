//! The images, and the command of each that is waited for: fixed here by name, so that everybody runs the same.

use anyhow::Result;
use sampan_e2e::fixtures::{Image, debian, real};

/// A command and what it prints when it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) words: &'static [&'static str],
    pub(crate) sign: &'static str,
}

/// One measured image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) make: fn() -> Result<Image>,
    pub(crate) ready: Program,
    /// Another program of the same image, which a start pack made from `ready` does not know.
    pub(crate) other: Option<Program>,
    /// Which share of the unpacked layers `ready` touches, measured once, with Debian 12: pages that a start read while the image
    /// was arriving (`sampan image trace`). It decides which bounds apply, not how anything is measured.
    pub(crate) touched: f64,
}

const PANDAS: Program = Program {
    words: &["python3", "-c", "import pandas; print('ready', pandas.Series([1, 2]).sum())"],
    sign: "ready 3",
};

/// All of them; `--images` names some.
pub(crate) static SUBJECTS: [Subject; 6] = [
    Subject {
        name: "python",
        make: debian::python_large,
        ready: Program {
            words: &["python3", "-c", "import numpy, scipy.linalg; print('ready', numpy.dot([1, 2], [3, 4]))"],
            sign: "ready 11",
        },
        other: Some(Program {
            words: &["python3", "-c", "import scipy.stats, scipy.signal; print('ready', scipy.stats.norm.cdf(0))"],
            sign: "ready 0.5",
        }),
        touched: 0.026,
    },
    Subject {
        name: "nginx",
        make: debian::nginx,
        ready: Program {
            words: &[
                "bash",
                "-c",
                "nginx && exec 3<>/dev/tcp/127.0.0.1/80 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3",
            ],
            sign: "Hello from nginx",
        },
        other: None,
        touched: 0.025,
    },
    Subject {
        name: "java",
        make: real::java,
        ready: Program { words: &["ant", "-f", "/app/build.xml"], sign: "the ferry is ready" },
        other: None,
        touched: 0.073,
    },
    Subject {
        name: "golang",
        make: real::golang,
        ready: Program {
            words: &["go", "list", "-deps", "-f", "{{.ImportPath}} ready", "net/http"],
            sign: "net/http ready",
        },
        other: None,
        touched: 0.005,
    },
    Subject { name: "science", make: real::science, ready: PANDAS, other: None, touched: 0.019 },
    Subject { name: "science-padded", make: real::science_padded, ready: PANDAS, other: None, touched: 0.012 },
];
