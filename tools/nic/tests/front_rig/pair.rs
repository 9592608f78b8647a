//! Two queue pairs of one client that are connected to each other.

use holdfast_nic::NicProcess;
use holdfast_wire::uar;
use holdfast_wire::wqe::{FLAG_SIGNALED, Opcode, Rdma, SendHeader, Sge};
use zerocopy::IntoBytes;

use super::{Client, Cq, Qp};

pub const ENTRIES: u32 = 64;
pub const GID: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// A client with two connected queue pairs on one completion queue each, and one region.
pub struct Pair<'a> {
    pub client: Client<'a>,
    pub cqs: [Cq; 2],
    pub qps: [Qp; 2],
    /// Offset in memory, start, key.
    pub region: (usize, u64, u32),
}

pub fn pair(process: &NicProcess) -> Pair<'_> {
    let mut client = Client::start(process, 0);
    client.bind_gid(0, GID);
    let pd = client.create_pd();
    let cqs = [client.create_cq(ENTRIES), client.create_cq(ENTRIES)];
    let region = client.create_mr(pd, 16);
    let qps = [client.create_qp(pd, &cqs[0]), client.create_qp(pd, &cqs[1])];
    client.connect_qp(&qps[0], qps[1].qpn, GID);
    client.connect_qp(&qps[1], qps[0].qpn, GID);
    Pair { client, cqs, qps, region }
}

impl Pair<'_> {
    pub fn sge(&self, offset: usize, length: u32) -> Sge {
        Sge { addr: self.region.1 + offset as u64, length, lkey: self.region.2 }
    }

    pub fn write_header(&self, wr_id: u64, to: usize, flags: u32) -> SendHeader {
        let rdma =
            Rdma { remote_addr: self.region.1 + to as u64, rkey: self.region.2, reserved: 0 };
        let mut wr = [0; 48];
        wr[..size_of::<Rdma>()].copy_from_slice(rdma.as_bytes());
        SendHeader {
            wr_id,
            num_sge: 1,
            opcode: Opcode::RdmaWrite.wire(),
            send_flags: flags,
            wr,
            ..Default::default()
        }
    }

    pub fn fill(&self, offset: usize, data: &[u8]) {
        self.client.memory.write(self.region.0 + offset, data);
    }

    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        self.client.memory.bytes(self.region.0 + offset, len)
    }

    pub fn post_write(&mut self, qp: usize, wr_id: u64, from: usize, to: usize, len: u32) {
        let header = self.write_header(wr_id, to, FLAG_SIGNALED);
        let sge = self.sge(from, len);
        self.client.post_send(&mut self.qps[qp], header, &[sge]);
    }

    pub fn ring(&self, qp: usize) {
        self.client.ring(uar::QP, self.qps[qp].handle | uar::QP_SEND);
    }

    pub fn completion(&mut self, cq: usize) -> holdfast_wire::completion::Cqe {
        self.client.poll(&mut self.cqs[cq], ENTRIES)
    }

    pub fn send(&mut self, qp: usize, wr_id: u64, flags: u32) {
        let header = SendHeader {
            wr_id,
            num_sge: 1,
            opcode: Opcode::Send.wire(),
            send_flags: flags,
            ..Default::default()
        };
        let sge = self.sge(0, 64);
        self.client.post_send(&mut self.qps[qp], header, &[sge]);
        self.ring(qp);
    }

    pub fn recv(&mut self, qp: usize, wr_id: u64) {
        let sge = self.sge(0x8000, 4096);
        self.client.post_recv(&mut self.qps[qp], wr_id, &[sge]);
    }
}
