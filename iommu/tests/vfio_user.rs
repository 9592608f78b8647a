//! The address space of a vfio-user device: files only, one message per mapping.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use holdfast_iommu::{
    AddressSpace, Backing, DmaMessages, Error, IovaRange, Piece, Prot, SharedMemory, VfioUserDomain,
};

const PAGE: u64 = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Message {
    Map(IovaRange, Prot, u64),
    Unmap(IovaRange),
}

#[derive(Default)]
struct Server {
    messages: Mutex<Vec<Message>>,
}

impl DmaMessages for Server {
    fn dma_limits(&self) -> (u64, u64) {
        // 512-byte pages are offered as well: nothing smaller than a page can be mapped.
        (0x1200, 3)
    }

    fn dma_map(
        &self,
        range: IovaRange,
        prot: Prot,
        _fd: BorrowedFd<'_>,
        offset: u64,
    ) -> holdfast_vfio::Result<()> {
        self.messages.lock().unwrap().push(Message::Map(range, prot, offset));
        Ok(())
    }

    fn dma_unmap(&self, range: IovaRange) -> holdfast_vfio::Result<u64> {
        self.messages.lock().unwrap().push(Message::Unmap(range));
        Ok(range.len())
    }
}

fn space() -> (Arc<Server>, Arc<AddressSpace>) {
    let server = Arc::new(Server::default());
    let domain = VfioUserDomain::new(Arc::clone(&server) as Arc<_>);
    (server, AddressSpace::new(Arc::new(domain)).unwrap())
}

#[test]
fn each_chunk_is_a_message_with_the_offset_in_its_file() {
    let (server, space) = space();
    assert_eq!(space.page_size(), PAGE);
    let memory = SharedMemory::new(4 * PAGE).unwrap();
    let mapping = space.map(memory.piece(), Prot::ReadWrite, Some(2 * PAGE)).unwrap();
    let [first, second] =
        [0, 2 * PAGE].map(|o| IovaRange::new(mapping.iova() + o, 2 * PAGE).unwrap());
    drop(mapping);
    assert_eq!(
        *server.messages.lock().unwrap(),
        [
            Message::Map(first, Prot::ReadWrite, 0),
            Message::Map(second, Prot::ReadWrite, 2 * PAGE),
            Message::Unmap(first),
            Message::Unmap(second),
        ]
    );
}

#[test]
fn memory_without_a_file_is_refused_with_the_cure() {
    let (server, space) = space();
    #[allow(unsafe_code)]
    // SAFETY: the memory is refused before anybody touches it.
    let backing = unsafe { Backing::memory(0x1000, None) };
    let error = space.map(Piece { backing, len: PAGE }, Prot::Read, None).unwrap_err();
    assert!(matches!(error, Error::NeedsFd { .. }), "{error}");
    assert!(error.to_string().contains("memfd"));
    assert_eq!(*server.messages.lock().unwrap(), []);
}

#[test]
fn the_limit_the_server_names_is_kept() {
    let (server, space) = space();
    let memory = SharedMemory::new(4 * PAGE).unwrap();
    let error = space.map(memory.piece(), Prot::Read, Some(PAGE)).unwrap_err();
    assert!(matches!(error, Error::MappingLimit { limit: 3 }), "{error}");
    let messages = server.messages.lock().unwrap();
    assert_eq!(messages.len(), 6, "three maps and their unmaps: {messages:?}");
}
