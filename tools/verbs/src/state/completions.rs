//! Completion channels and completion queues.

use std::mem::offset_of;
use std::sync::Arc;

use super::objects::{Chan, Context, Cq, Owner, RetiredCq};
use super::{State, pointer, same_device};
use crate::abi;
use crate::channel::Channel;
use crate::error::Error;
use crate::face::Face;
use crate::hca::Armed;

fn at_least_one(what: &'static str, value: i32) -> Result<u32, Error> {
    match u32::try_from(value) {
        Ok(value @ 1..) => Ok(value),
        _ => Err(Error::Invalid { what, value: value as u64 }),
    }
}

impl State {
    pub(crate) fn create_channel(
        &mut self,
        context: usize,
    ) -> Result<*mut abi::CompChannel, Error> {
        let Context { face, nic, .. } = self.contexts.find(context)?;
        let channel = Arc::new(Channel::new()?);
        let (context_ptr, fd) = (face.as_ptr(), channel.fd());
        let face = Face::new(abi::CompChannel { context: context_ptr, fd, refcnt: 0 });
        let (ptr, at) = (face.as_ptr(), face.address());
        let owner = Owner { nic: *nic, context };
        self.channels.insert(at, Chan { face, owner, channel, users: 0 });
        Ok(ptr)
    }

    pub(crate) fn destroy_channel(&mut self, channel: usize) -> Result<(), Error> {
        if self.channels.find(channel)?.users > 0 {
            return Err(Error::Busy { what: "completion channel" });
        }
        self.channels.remove(channel)?.channel.close();
        Ok(())
    }

    pub(crate) fn channel(&self, channel: usize) -> Result<Arc<Channel>, Error> {
        Ok(self.channels.find(channel)?.channel.clone())
    }

    /// Takes an event of a channel: the queue and what its owner wants back with it.
    pub(crate) fn take_event(
        &mut self,
        channel: usize,
    ) -> Result<Option<(*mut abi::Cq, usize)>, Error> {
        let Some(address) = self.channels.find(channel)?.channel.pop() else { return Ok(None) };
        let cq = self.cqs.find_mut(address)?;
        cq.unacknowledged = cq.unacknowledged.saturating_add(1);
        Ok(Some((cq.face.as_ptr(), cq.context_value)))
    }

    /// Acknowledges events; the last one lets a destroyed queue's structure go.
    pub(crate) fn acknowledge(&mut self, cq: usize, events: u32) -> Result<(), Error> {
        if let Ok(cq) = self.cqs.find_mut(cq) {
            cq.unacknowledged = cq.unacknowledged.saturating_sub(events);
            return Ok(());
        }
        let retired = self.retired.find_mut(cq)?;
        retired.unacknowledged = retired.unacknowledged.saturating_sub(events);
        if retired.unacknowledged == 0 {
            self.retired.remove(cq)?;
        }
        Ok(())
    }

    /// Makes a completion queue of at least `entries` entries. Vectors are all the same one.
    pub(crate) fn create_cq(
        &mut self,
        context: usize,
        entries: i32,
        context_value: usize,
        channel: Option<usize>,
    ) -> Result<*mut abi::Cq, Error> {
        let Context { face, nic, .. } = self.contexts.find(context)?;
        let (context_ptr, owner) = (face.as_ptr(), Owner { nic: *nic, context });
        let entries = at_least_one("entries of a completion queue", entries)?;
        let most = self.engine.limits(owner.nic).max_cqe;
        let depth = if entries > most { entries } else { entries.next_power_of_two().min(most) };
        let events = match channel {
            Some(address) => {
                let chan = self.channels.find_mut(address)?;
                same_device("completion channel", chan.owner.nic, owner.nic)?;
                Some(chan)
            }
            None => None,
        };
        let handle = self.engine.create_cq(owner.nic, depth)?;
        let face = Face::new(abi::Cq {
            context: context_ptr,
            channel: events.as_ref().map_or(std::ptr::null_mut(), |chan| chan.face.as_ptr()),
            cq_context: pointer(context_value),
            handle,
            cqe: depth as i32,
            mutex: [0; 5],
            cond: [0; 6],
            comp_events_completed: 0,
            async_events_completed: 0,
        });
        let (ptr, at) = (face.as_ptr(), face.address());
        let target = events.map(|chan| {
            chan.users += 1;
            chan.face.set(offset_of!(abi::CompChannel, refcnt), chan.users as i32);
            (chan.channel.clone(), at)
        });
        self.engine.host(owner.nic).add_cq(handle, depth, target);
        let cq = Cq { face, owner, handle, channel, context_value, unacknowledged: 0 };
        self.cqs.insert(at, cq);
        Ok(ptr)
    }

    pub(crate) fn destroy_cq(&mut self, cq: usize) -> Result<(), Error> {
        let found = self.cqs.find(cq)?;
        self.engine.destroy_cq(found.owner.nic, found.handle)?;
        self.engine.host(found.owner.nic).remove_cq(found.handle);
        let gone = self.cqs.remove(cq)?;
        if let Some(chan) = gone.channel.and_then(|at| self.channels.find_mut(at).ok()) {
            chan.users = chan.users.saturating_sub(1);
            chan.face.set(offset_of!(abi::CompChannel, refcnt), chan.users as i32);
        }
        if gone.unacknowledged > 0 {
            let Cq { face, unacknowledged, .. } = gone;
            self.retired.insert(cq, RetiredCq { _face: face, unacknowledged });
        }
        Ok(())
    }

    pub(crate) fn arm(&mut self, cq: usize, solicited_only: bool) -> Result<(), Error> {
        let Cq { owner, handle, .. } = self.cqs.find(cq)?;
        let armed = if solicited_only { Armed::Solicited } else { Armed::Any };
        self.engine.host(owner.nic).arm(*handle, armed);
        Ok(())
    }
}
