//! Protection domains, memory regions, address handles.

use holdfast_nic::engine::{MrInit, MrKind};
use holdfast_wire::attr::ACCESS_LOCAL_WRITE;

use super::objects::{Ah, Context, Mr, Owner, Pd};
use super::{State, check_port, pointer};
use crate::abi;
use crate::error::Error;
use crate::face::Face;
use crate::memory::PAGE;

impl State {
    pub(crate) fn alloc_pd(&mut self, context: usize) -> Result<*mut abi::Pd, Error> {
        let Context { face, nic, .. } = self.contexts.find(context)?;
        let handle = self.engine.create_pd(*nic)?;
        let face = Face::new(abi::Pd { context: face.as_ptr(), handle });
        let (ptr, address) = (face.as_ptr(), face.address());
        self.pds.insert(address, Pd { face, owner: Owner { nic: *nic, context }, handle });
        Ok(ptr)
    }

    pub(crate) fn dealloc_pd(&mut self, pd: usize) -> Result<(), Error> {
        let found = self.pds.find(pd)?;
        self.engine.destroy_pd(found.owner.nic, found.handle)?;
        self.pds.remove(pd).map(drop)
    }

    /// Registers memory of the process. Its users count its addresses from `iova` on.
    pub(crate) fn register(
        &mut self,
        pd: usize,
        address: usize,
        length: usize,
        iova: u64,
        access: u32,
    ) -> Result<*mut abi::Mr, Error> {
        let Pd { face: pd_face, owner, handle: pd_handle } = self.pds.find(pd)?;
        let (owner, pd_handle) = (*owner, *pd_handle);
        let (start, bytes) = (address as u64, length as u64);
        if start % PAGE != iova % PAGE {
            // As the kernel has it: the first page's offset is the same in both.
            return Err(Error::Invalid { what: "offset of the region's address", value: iova });
        }
        let limit = u64::from(self.engine.limits(owner.nic).max_mr_pages) * PAGE;
        if bytes > limit - PAGE {
            return Err(Error::Invalid { what: "length of a region", value: bytes });
        }
        let write = access & ACCESS_LOCAL_WRITE != 0;
        let memory = &mut self.engine.host(owner.nic).memory;
        let pages = memory.register(start, bytes, write)?;
        let list = pages.clone().step_by(PAGE as usize).collect();
        let kind = MrKind::Pages(list);
        let init = MrInit { pd: pd_handle, start: iova, length: bytes, access, kind };
        let info = match self.engine.create_mr(owner.nic, init) {
            Ok(info) => info,
            Err(error) => {
                self.engine.host(owner.nic).memory.release(pages);
                return Err(error.into());
            }
        };
        let face = Face::new(abi::Mr {
            context: pointer(owner.context),
            pd: pd_face.as_ptr(),
            addr: pointer(address),
            length,
            handle: info.handle,
            lkey: info.lkey,
            rkey: info.rkey,
        });
        let (ptr, at) = (face.as_ptr(), face.address());
        self.mrs.insert(at, Mr { _face: face, owner, handle: info.handle, pages });
        Ok(ptr)
    }

    pub(crate) fn deregister(&mut self, mr: usize) -> Result<(), Error> {
        let Mr { owner, handle, pages, .. } = self.mrs.remove(mr)?;
        self.engine.destroy_mr(owner.nic, handle)?;
        self.engine.host(owner.nic).memory.release(pages);
        Ok(())
    }

    pub(crate) fn create_ah(
        &mut self,
        pd: usize,
        attr: abi::AhAttr,
    ) -> Result<*mut abi::Ah, Error> {
        let Pd { face: pd_face, owner, .. } = self.pds.find(pd)?;
        check_port(attr.port_num)?;
        if attr.is_global == 0 {
            return Err(Error::Invalid { what: "is_global", value: 0 });
        }
        let index = attr.grh.sgid_index;
        if self.engine.gid(owner.nic, index.into()).is_none() {
            return Err(Error::Invalid { what: "source GID index", value: index.into() });
        }
        let context = pointer(owner.context);
        let face = Face::new(abi::Ah { context, pd: pd_face.as_ptr(), handle: 0 });
        let (ptr, at) = (face.as_ptr(), face.address());
        self.ahs.insert(at, Ah { _face: face, owner: *owner, attr });
        Ok(ptr)
    }

    pub(crate) fn destroy_ah(&mut self, ah: usize) -> Result<(), Error> {
        self.ahs.remove(ah).map(drop)
    }
}
