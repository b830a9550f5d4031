//! What can be measured: who starts which program of which image behind which link.

use sampan_e2e::link::Shape;

/// The links that everything is measured behind.
pub(crate) const LINKS: [Shape; 4] =
    [Shape::NONE, Shape::new(20, None), Shape::new(5, Some(200)), Shape::new(20, Some(24))];

/// Who starts an image, and what he knows of it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// containerd 2 with overlayfs, then with its erofs differ.
    Containerd,
    ContainerdErofs,
    /// Converted, then converted for the very command.
    Stargz,
    StargzOptimized,
    /// With its index beside the unmodified layers.
    Soci,
    /// Converted (RAFS version 6), then with references into the unmodified layers.
    Nydus,
    NydusZran,
    /// Nobody: the layers are downloaded and forgotten.
    Download,
    /// We, knowing nothing.
    Plain,
    /// We, with a published index; with a trace of earlier starts; with a start pack.
    Index,
    Trace,
    Pack,
}

impl Who {
    pub(crate) const ALL: [Self; 12] = [
        Self::Containerd,
        Self::ContainerdErofs,
        Self::Stargz,
        Self::StargzOptimized,
        Self::Soci,
        Self::Nydus,
        Self::NydusZran,
        Self::Download,
        Self::Plain,
        Self::Index,
        Self::Trace,
        Self::Pack,
    ];
    /// The lazy loaders of others.
    pub(crate) const LOADERS: [Self; 5] =
        [Self::Stargz, Self::StargzOptimized, Self::Soci, Self::Nydus, Self::NydusZran];
    /// Those that take an image as it is.
    pub(crate) const UNMODIFIED: [Self; 2] = [Self::Soci, Self::NydusZran];
    /// Ours that need an index.
    pub(crate) const INDEXED: [Self; 3] = [Self::Index, Self::Trace, Self::Pack];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::ContainerdErofs => "containerd-erofs",
            Self::Stargz => "stargz",
            Self::StargzOptimized => "stargz-optimized",
            Self::Soci => "soci",
            Self::Nydus => "nydus",
            Self::NydusZran => "nydus-zran",
            Self::Download => "download",
            Self::Plain => "sampan-plain",
            Self::Index => "sampan-index",
            Self::Trace => "sampan-trace",
            Self::Pack => "sampan-pack",
        }
    }
}

/// One thing to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) image: &'static str,
    pub(crate) link: Shape,
    /// Whether it is the image's other program that runs.
    pub(crate) other: bool,
    pub(crate) who: Who,
}

impl Cell {
    /// How it is called in tables and files.
    pub(crate) fn name(&self) -> String {
        let other = if self.other { "/other-program" } else { "" };
        format!("{}/{}{other}/{}", self.image, self.link, self.who.name())
    }

    /// The same by somebody else.
    pub(crate) fn by(&self, who: Who) -> Self {
        Self { who, ..*self }
    }
}
