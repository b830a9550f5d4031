//! What happens to the images that a pod uses while it runs.

use jiff::Timestamp;
use sampan_image::ImageEvent;
use sampan_oci::digest::Digest;

use super::Worker;
use crate::events::Kind;

impl Worker {
    /// Tells of an image that cannot be read, and takes the pod away from one that was not what it said.
    pub(super) fn image_event(&mut self, event: &ImageEvent) {
        match event {
            ImageEvent::Complete { .. } => {}
            ImageEvent::Trouble { images, cause, readers_failed, .. } if self.uses(images) => {
                let (reason, what) = match readers_failed {
                    0 => ("ImageDelayed", "Reads of files that have not arrived yet wait"),
                    _ => ("ImageUnreadable", "Reads of files that have not arrived failed"),
                };
                self.event(Kind::Warning, reason, format!("{what}: {cause}"));
            }
            ImageEvent::Untrue { images, cause, .. } if self.uses(images) => {
                let message = format!("The pod was stopped: its image was not what its index said: {cause}");
                self.event(Kind::Warning, "ImageUntrue", message.clone());
                // They are pulled anew, and whole.
                self.images.clear();
                self.held_images.clear();
                if matches!(self.held, super::Held::Ready(_)) {
                    self.lifecycle.sandbox_lost("ImageUntrue", &message, Timestamp::now());
                    self.remove_sandbox(true);
                }
            }
            ImageEvent::Trouble { .. } | ImageEvent::Untrue { .. } => {}
        }
    }

    fn uses(&self, images: &[Digest]) -> bool {
        let is_ours = |image: &Digest| {
            let text = image.to_string();
            self.image_ids.values().any(|id| *id == text) || self.held_images.values().any(|held| held.id == *image)
        };
        images.iter().any(is_ours)
    }
}
