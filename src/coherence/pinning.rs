//! What stands behind the pins of DAX files: the proof that they hold, and the keeper that makes the
//! death of this process safe.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use holdfast_dax::notify::{Notice, NotifierKind, Stage};
use holdfast_dax::{Memory, Pin, prove};
use holdfast_iommu::AddressSpace;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::file::GuardedFile;
use super::held::HeldPin;
use super::keeping::News;
use super::shared::Shared;
use crate::lock::lock;
use crate::{Error, Result};

impl Shared {
    /// Shows, once for each file system, that a pin holds there.
    pub fn prove(&self, memory: &Memory) -> Result<()> {
        let Some(id) = memory.file_id() else { return Ok(()) };
        if lock(&self.proven).contains(&id.dev) {
            return Ok(());
        }
        let folder = memory.path().and_then(Path::parent).unwrap_or(Path::new("."));
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let proof = prove(folder)?;
        if proof.file_system.dev != id.dev {
            return Err(Error::Guard(format!(
                "{} is not on the file system of its folder {}: whether a layout pin holds there \
                 cannot be shown; name it by the path it has on its own file system",
                memory.source(),
                folder.display()
            )));
        }
        tracing::info!(%proof, "layout pins hold");
        lock(&self.proven).insert(id.dev);
        Ok(())
    }

    /// Has the keeper hold the container that memory of a pinned file goes into.
    pub fn cover(&self, space: &Arc<AddressSpace>) -> Result<()> {
        if self.keeping.cover(space)? {
            self.listen_to_keeper();
        }
        Ok(())
    }

    fn listen_to_keeper(&self) {
        if let Some(keeper) = self.keeping.keeper()
            && let Err(errno) =
                self.ready.add(keeper.events_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0))
        {
            tracing::warn!(%errno, "news of the keeper comes late");
        }
    }

    /// Takes a pin by the page of the file at `offset`, which must have a block, and by others, and
    /// has the keeper hold it as well. Blocks while an operation changes the layout; the caller holds no
    /// lock.
    pub fn pin(&self, file: &GuardedFile, offset: u64, others: &[u64]) -> Result<Arc<HeldPin>> {
        let none = || Error::Guard("anonymous memory needs no pin".to_owned());
        let fd = file.fd.as_ref().ok_or_else(none)?;
        let keeper = self.keeping.keeper();
        if let Some(keeper) = &keeper {
            file.keep(Arc::clone(keeper))?;
        }
        let since = Instant::now();
        let pin = Pin::take_several(fd.as_fd(), offset, others)?;
        Ok(Arc::new(HeldPin::new(pin, since, keeper)?))
    }

    /// What the keeper did becomes notices; says whether it died.
    pub fn keeper_news(&self, notices: &mut Vec<Notice>) -> bool {
        let mut died = false;
        self.keeping.tidy();
        self.keeping.news(&mut |news| match news {
            // Everything that was in a container is gone from it, whichever file it was of.
            News::Revoked => notices.extend(
                self.files()
                    .iter()
                    .map(|file| Notice::new(file.subject, NotifierKind::GuardPage, Stage::Waiting)),
            ),
            News::Died => died = true,
        });
        if died && let Some(keeper) = self.keeping.keeper() {
            // It says so for ever.
            died = self.ready.delete(keeper.events_fd()).is_ok();
        }
        died
    }

    /// Starts another keeper and hands everything over to it. Waits for its answers.
    pub fn replace_keeper(&self) {
        tracing::warn!("the keeper is gone; starting another");
        let replaced = self.keeping.replace().and_then(|new| {
            let Some(new) = new else { return Ok(()) };
            self.listen_to_keeper();
            for file in self.files() {
                let pin = file.lock().pin.clone();
                if let Some(pin) = pin {
                    pin.hand_over(Arc::clone(&new))?;
                }
            }
            Ok(())
        });
        if let Err(error) = replaced {
            tracing::error!(%error, "there is no keeper: should this process be killed now, a \
                 device may reach blocks that its file gave up");
        }
    }
}
