//! The driver that is killed, stopped and asked what it saw.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use holdfast::coherence::keeper::{Keeper, KeeperOptions};
use holdfast_iommu::{AddressSpace, Piece, Prot, Type1Domain};
use holdfast_vfio::kernel;
use holdfast_vfio::pci::{Address, Tree};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::DEADLINE;
use crate::pinned::Pinned;

/// Maps, pins, hands over, says so, and answers on standard input until it ends. With `unheld` it
/// maps nothing and hands its pin over only when it is asked to.
pub fn run(holdfast: &Path, device: Address, file: &Path, unheld: bool) -> Result<()> {
    let (container, device) = kernel::open(&Tree::system(), device)?;
    let space = AddressSpace::new(Arc::new(Type1Domain::new(container)?))?;
    let options = KeeperOptions { program: Some(holdfast.to_owned()), deadline: DEADLINE };
    let keeper = Keeper::spawn(&options)?;
    keeper.hold_container(space.container().context("no container")?)?;
    let pinned = Pinned::new(file)?;
    let mut pin = None;
    let scrap = space.scrap(4096)?;
    let mut mapping = None;
    if !unheld {
        let held = keeper.hold_pin(&pinned.parts())?;
        let turn = keeper.begin_map(held)?;
        let piece = Piece { backing: pinned.window()?, len: 4096 };
        mapping = Some(space.map(piece, Prot::ReadWrite, None)?);
        drop(turn);
        pin = Some(held);
    }
    println!("keeper {}", keeper.pid());
    for line in std::io::stdin().lines() {
        match line?.as_str() {
            "event" => {
                let mut fds = [PollFd::new(keeper.events_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(10_000u16))?;
                let mut heard = Vec::new();
                keeper.collect(&mut |event| heard.push(event));
                println!("{heard:?}");
            }
            "retarget" => {
                let range = mapping.as_ref().context("nothing is mapped")?.range();
                println!("{:?}", space.retarget(range, &scrap));
            }
            "hold" => {
                pin = Some(keeper.hold_pin(&pinned.parts())?);
                println!("held");
            }
            "release" => {
                pinned.release()?;
                println!("released");
            }
            "let go" => {
                keeper.let_go(pin.take().context("nothing is held")?);
                println!("let go");
            }
            other => bail!("what is {other}?"),
        }
    }
    drop(device);
    Ok(())
}
