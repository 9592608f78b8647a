//! Bring-up, registers, and every command: what succeeds, what is refused and how.

mod front_rig;

use front_rig::{Client, IOVA, MEMORY, PAGE, bytes, eventually, process};
use holdfast_nic::server::{Backend, DmaUnmap};
use holdfast_nic::{Doorbells, PollMode};
use holdfast_wire::attr::{QpAttr, QpType, SrqAttr, mask};
use holdfast_wire::cmd::{self, Command, ResponseHeader};
use holdfast_wire::regs;
use zerocopy::IntoBytes;

const EINVAL: u8 = libc::EINVAL as u8;

#[test]
fn a_new_device_says_who_it_is() {
    let process = process(1, |_| {});
    let client = Client::connect(&process, 0);
    assert_eq!(client.read(regs::VERSION), 20);
    assert_eq!(client.read(regs::ERR), regs::ERR_NO_DSR);
    assert_eq!(client.read(regs::EXT_MAGIC), regs::EXT_MAGIC_VALUE);
    let features = regs::EXT_FEATURE_MEMORY_DOORBELLS | regs::EXT_FEATURE_WAKE;
    assert_eq!(client.read(regs::EXT_FEATURES), features);
    let mut odd = [0; 3];
    process.with_backend(0, |b| b.read(regs::BAR_REGS, 0, &mut odd)).unwrap();
    assert_eq!(odd, [20, 0, 0], "reads of any size work");
    let write = process.with_backend(0, |b| b.write(regs::BAR_REGS, 2, &[0; 4]));
    assert_eq!(write, Err(nix::errno::Errno::EINVAL), "writes are whole registers");
}

#[test]
fn loading_the_shared_region_fills_the_caps() {
    for version in 17..=20 {
        let process = process(1, |options| options.version = version);
        let client = Client::start(&process, 0);
        let caps = client.caps();
        assert_eq!(caps.mode, 0);
        assert_eq!(caps.gid_types, if version < 18 { 1 } else { 2 }, "version {version}");
        assert_eq!(caps.max_sge, 16);
        assert_eq!(caps.max_mr_size, 1 << 30);
        assert_eq!(caps.page_size_cap, 4096);
        assert!(caps.max_uar.is_power_of_two() && caps.max_uar > 1);
        assert_eq!((caps.atomic_ops, caps.bmme_flags), (15, 7));
        assert_eq!(caps.phys_port_cnt, 1);
    }
}

#[test]
fn a_shared_region_out_of_reach_leaves_the_device_down() {
    let process = process(1, |_| {});
    let mut client = Client::connect(&process, 0);
    for dsr in [0, 4, IOVA + MEMORY as u64, u64::MAX - 7] {
        client.write(regs::DSR_LOW, dsr as u32);
        client.write(regs::DSR_HIGH, (dsr >> 32) as u32);
        assert_eq!(client.read(regs::ERR), regs::ERR_NO_DSR);
        client.write(regs::REQUEST, 0);
        assert_eq!(client.read(regs::ERR), regs::ERR_NO_DSR);
    }
    client.load_dsr();
    assert_eq!(client.read(regs::ERR), 0, "a second try may succeed");
}

#[test]
fn unknown_opcodes_and_request_values_are_refused() {
    let process = process(1, |_| {});
    let mut client = Client::start(&process, 0);
    for opcode in [21, 22, 0x8000_0000, u32::MAX] {
        let header = cmd::RequestHeader { response: 1, cmd: opcode, reserved: 0 };
        assert_eq!(client.execute(header.as_bytes()), regs::ERR_NO_DSR, "opcode {opcode:#x}");
    }
    client.write(regs::REQUEST, 1);
    assert_eq!(client.read(regs::ERR), (-libc::EINVAL) as u32);
    client.write(regs::CTL, 99);
    assert_eq!(client.read(regs::ERR), (-libc::EINVAL) as u32);
    client.create_pd();
}

#[test]
fn port_and_pkey_are_told() {
    let process = process(1, |_| {});
    let mut client = Client::start(&process, 0);
    let mut port = |port_num| {
        client.call::<cmd::QueryPortResp>(Command::QueryPort, |hdr| {
            bytes(&cmd::QueryPort { hdr, port_num, ..Default::default() })
        })
    };
    let attrs = port(1).unwrap().attrs;
    assert_eq!((attrs.state, attrs.active_mtu, attrs.phys_state), (4, 5, 5));
    assert_eq!(attrs.max_msg_sz, 1 << 30);
    assert!(attrs.gid_tbl_len >= 16);
    let refused = port(2).unwrap_err();
    assert_eq!((refused.errno, refused.register), (EINVAL, (-libc::EINVAL) as u32));
    let pkey: cmd::QueryPkeyResp = client
        .call(Command::QueryPkey, |hdr| {
            bytes(&cmd::QueryPkey { hdr, port_num: 1, ..Default::default() })
        })
        .unwrap();
    assert_eq!(pkey.pkey, 0xffff);
}

#[test]
fn objects_are_made_and_destroyed_in_order() {
    let process = process(1, |_| {});
    let mut client = Client::start(&process, 0);
    let pd = client.create_pd();
    let cq = client.create_cq(64);
    let (_, _, lkey) = client.create_mr(pd, 3);
    assert_ne!(lkey, 0);
    let qp = client.create_qp(pd, &cq);
    assert!(qp.handle <= 0xffff && qp.qpn >> 24 == 0 && qp.qpn != qp.handle);
    let mut destroy = |command, handle: u32| {
        client
            .call::<ResponseHeader>(command, |hdr| {
                bytes(&cmd::DestroyPd { hdr, pd_handle: handle, ..Default::default() })
            })
            .map_err(|refused| i32::from(refused.errno))
            .map(drop)
    };
    assert_eq!(destroy(Command::DestroyCq, cq.handle), Err(libc::EBUSY));
    assert_eq!(destroy(Command::DestroyPd, pd), Err(libc::EBUSY));
    assert_eq!(destroy(Command::DestroyQp, qp.handle), Ok(()));
    assert_eq!(destroy(Command::DestroyQp, qp.handle), Err(libc::EINVAL));
    assert_eq!(destroy(Command::DestroyCq, cq.handle), Ok(()));
    assert_eq!(destroy(Command::DestroyMr, 0), Ok(()));
    assert_eq!(destroy(Command::DestroyPd, pd), Ok(()));
    for command in [Command::DestroyPd, Command::DestroyMr, Command::DestroySrq, Command::DestroyUc]
    {
        assert_eq!(destroy(command, 12345), Err(libc::EINVAL), "{command:?}");
    }
}

#[test]
fn completion_queues_are_checked_before_they_are_made() {
    let process = process(1, |_| {});
    let mut client = Client::start(&process, 0);
    let pages = client.alloc(4);
    let pdir = pages.pdir;
    let outside = IOVA + MEMORY as u64;
    for (name, cqe, nchunks, pdir_dma, errno) in [
        ("no entries", 0, 4, pdir, libc::EINVAL),
        ("no power of two", 48, 4, pdir, libc::EINVAL),
        ("too many", 1 << 20, 4, pdir, libc::EINVAL),
        ("too few pages", 256, 4, pdir, libc::EINVAL),
        ("unmapped directory", 64, 4, outside, libc::EFAULT),
        ("wrapping directory", 64, 4, u64::MAX - 3, libc::EFAULT),
    ] {
        let refused = client
            .call::<cmd::CreateCqResp>(Command::CreateCq, |hdr| {
                bytes(&cmd::CreateCq { hdr, pdir_dma, cqe, nchunks, ..Default::default() })
            })
            .unwrap_err();
        assert_eq!(i32::from(refused.errno), errno, "{name}");
    }
    // A directory entry that is not page aligned.
    let table = pages.first + 5 * PAGE;
    client.memory.write(table + 8, &(IOVA + 8).to_le_bytes());
    let refused = client
        .call::<cmd::CreateCqResp>(Command::CreateCq, |hdr| {
            bytes(&cmd::CreateCq { hdr, pdir_dma: pdir, cqe: 64, nchunks: 2, ..Default::default() })
        })
        .unwrap_err();
    assert_eq!(refused.errno, EINVAL);
}

#[test]
fn queue_pairs_are_checked_before_they_are_made() {
    let process = process(1, |_| {});
    let mut client = Client::start(&process, 0);
    let pd = client.create_pd();
    let cq = client.create_cq(64);
    let (good, _, _) = client.qp_request(pd, &cq, 0);
    type Change = fn(&mut cmd::CreateQp);
    let cases: [(&str, Change); 9] = [
        ("no power of two", |r| r.max_send_wr = 12),
        ("too deep", |r| r.max_send_wr = 1 << 20),
        ("too many entries", |r| r.max_send_sge = 17),
        ("too much inline", |r| r.max_inline_data = 4096),
        ("ring beyond its pages", |r| r.max_recv_wr = 4096),
        ("more send pages than pages", |r| r.send_chunks = r.total_chunks),
        ("no such type", |r| r.qp_type = 9),
        ("no such protection domain", |r| r.pd_handle = 777),
        ("no such shared receive queue", |r| {
            r.is_srq = 1;
            r.srq_handle = 5;
        }),
    ];
    for (name, change) in cases {
        let mut request = good;
        change(&mut request);
        assert_eq!(client.execute(request.as_bytes()), (-libc::EINVAL) as u32, "{name}");
    }
    assert_eq!(client.execute(good.as_bytes()), 0);
    let mut gsi = good;
    gsi.qp_type = 1;
    assert_eq!(client.execute(gsi.as_bytes()), 0, "general services");
    assert_eq!(client.response::<cmd::CreateQpRespV2>().qpn, 1);
}

#[test]
fn shared_receive_queues_live_their_life() {
    let process = process(1, |_| {});
    let mut client = Client::start(&process, 0);
    let pd = client.create_pd();
    let pages = client.alloc(2);
    let created: cmd::CreateSrqResp = client
        .call(Command::CreateSrq, |hdr| {
            bytes(&cmd::CreateSrq {
                hdr,
                pdir_dma: pages.pdir,
                pd_handle: pd,
                nchunks: 2,
                max_wr: 64,
                max_sge: 2,
                ..Default::default()
            })
        })
        .unwrap();
    let srq_handle = created.srqn;
    let attrs = SrqAttr { srq_limit: 5, ..Default::default() };
    client
        .call::<ResponseHeader>(Command::ModifySrq, |hdr| {
            bytes(&cmd::ModifySrq { hdr, srq_handle, attr_mask: 2, attrs })
        })
        .unwrap();
    let found: cmd::QuerySrqResp = client
        .call(Command::QuerySrq, |hdr| {
            bytes(&cmd::QuerySrq { hdr, srq_handle, ..Default::default() })
        })
        .unwrap();
    assert_eq!((found.attrs.max_wr, found.attrs.max_sge, found.attrs.srq_limit), (64, 2, 5));
}

#[test]
fn below_version_20_a_queue_pair_has_one_name() {
    let process = process(1, |options| options.version = 17);
    let mut client = Client::start(&process, 0);
    let max_qp = client.caps().max_qp;
    let pd = client.create_pd();
    let cq = client.create_cq(64);
    let mut names = Vec::new();
    for qp_type in [QpType::Gsi, QpType::Rc, QpType::Ud, QpType::Rc] {
        let qp = client.create_qp_of(qp_type, pd, &cq);
        // Linux keeps queue pairs by `name % max_qp`, and looks completions up by 16 bits of it.
        assert!(qp.qpn < max_qp && qp.qpn <= 0xffff, "{:#x}", qp.qpn);
        let init = QpAttr { qp_state: 1, port_num: 1, ..Default::default() };
        let bits = match qp_type {
            QpType::Rc => mask::STATE | mask::PORT | mask::PKEY_INDEX | mask::ACCESS_FLAGS,
            QpType::Gsi => mask::STATE | mask::PKEY_INDEX | mask::QKEY,
            _ => mask::STATE | mask::PORT | mask::PKEY_INDEX | mask::QKEY,
        };
        client.modify(&qp, bits, init).unwrap();
        let found: cmd::QueryQpResp = client
            .call(Command::QueryQp, |hdr| {
                bytes(&cmd::QueryQp { hdr, qp_handle: qp.qpn, attr_mask: 1 })
            })
            .unwrap();
        assert_eq!(found.attrs.qp_state, 1, "{qp_type:?}");
        names.push(qp.qpn);
    }
    assert_eq!(names[0], 1, "general services");
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 4, "each has a name of its own");
}

#[test]
fn user_contexts_get_their_doorbell_pages_polled() {
    let process = process(1, |_| {});
    let mut client = Client::start(&process, 0);
    let created: cmd::CreateUcResp = client
        .call(Command::CreateUc, |hdr| bytes(&cmd::CreateUc { hdr, pfn: 0xfe00_0000 / 4096 + 7 }))
        .unwrap();
    let pd = client.create_pd();
    let cq = client.create_cq(64);
    client.create_qp(pd, &cq);
    let word = client.uar.as_ref().unwrap().word(7 * PAGE + 4);
    word.store(cq.handle | holdfast_wire::uar::CQ_POLL, std::sync::atomic::Ordering::SeqCst);
    eventually(|| (word.load(std::sync::atomic::Ordering::SeqCst) == 0).then_some(()));
    client
        .call::<ResponseHeader>(Command::DestroyUc, |hdr| {
            bytes(&cmd::DestroyUc { hdr, ctx_handle: created.ctx_handle, ..Default::default() })
        })
        .unwrap();
}

#[test]
fn an_asynchronous_device_answers_later_and_raises_vector_0() {
    let process = process(1, |options| options.async_commands = true);
    let mut client = Client::start(&process, 0);
    let irqs = client.bind_irqs();
    client.create_pd();
    eventually(|| irqs[0].read().ok());
    let refused = client.call::<ResponseHeader>(Command::DestroyPd, |hdr| {
        bytes(&cmd::DestroyPd { hdr, pd_handle: 99, ..Default::default() })
    });
    // The register accepted it; the response says what came of it.
    assert_eq!(refused.unwrap_err().errno, EINVAL);
}

#[test]
fn reset_forgets_every_object() {
    let process = process(1, |_| {});
    let mut client = Client::start(&process, 0);
    let pd = client.create_pd();
    let cq = client.create_cq(64);
    client.create_qp(pd, &cq);
    client.bind_gid(0, [3; 16]);
    client.write(regs::CTL, regs::CTL_RESET);
    assert_eq!(client.read(regs::ERR), 0);
    assert_eq!(process.report().unwrap().nics[0].queue_pairs, 0);
    client.load_dsr();
    client.write(regs::CTL, regs::CTL_ACTIVATE);
    client.create_pd();
    client.bind_gid(0, [3; 16]);
}

#[test]
fn taking_bus_mastering_away_forgets_every_object() {
    const COMMAND: u64 = 4;
    let config = 7;
    let process = process(1, |_| {});
    let mut client = Client::start(&process, 0);
    let command = |value: u8| {
        process.with_backend(0, |b| b.write(config, COMMAND, &[value, 0])).unwrap();
    };
    command(6);
    let pd = client.create_pd();
    let cq = client.create_cq(64);
    client.create_qp(pd, &cq);
    command(6);
    assert_eq!(process.report().unwrap().nics[0].queue_pairs, 1, "nothing was taken away");
    command(2);
    assert_eq!(process.report().unwrap().nics[0].queue_pairs, 0, "the owner is gone");
    command(6);
    client.load_dsr();
    client.create_pd();
}

#[test]
fn a_client_that_goes_leaves_nothing_behind() {
    let process = process(1, |_| {});
    for _ in 0..3 {
        let mut client = Client::start(&process, 0);
        let pd = client.create_pd();
        let cq = client.create_cq(64);
        client.create_qp(pd, &cq);
        client.bind_gid(0, [3; 16]);
        assert!(process.report().unwrap().nics[0].connected);
        client.disconnect();
        let report = process.report().unwrap().nics.remove(0);
        assert_eq!((report.connected, report.queue_pairs, report.mappings), (false, 0, 0));
    }
}

#[test]
fn unmapping_obeys_vfio_and_counts_bytes() {
    let process = process(1, |_| {});
    let client = Client::start(&process, 0);
    let unmap = |iova, len| process.with_backend(0, |b| b.dma_unmap(DmaUnmap::Range { iova, len }));
    assert_eq!(unmap(IOVA, 4096), Err(nix::errno::Errno::EINVAL));
    assert_eq!(client.map_all(), Err(nix::errno::Errno::EEXIST));
    // As QEMU takes down what a vIOMMU had above its interrupt window: up to the end of all.
    assert_eq!(unmap(IOVA, IOVA.wrapping_neg()), Ok(MEMORY as u64));
    assert_eq!(unmap(IOVA, MEMORY as u64), Ok(0));
    assert_eq!(unmap(8192, !4095), Err(nix::errno::Errno::EINVAL), "beyond 2^64");
    client.write(regs::REQUEST, 0);
    assert_eq!(client.read(regs::ERR), (-libc::EFAULT) as u32, "the command slot is gone");
    assert_eq!(process.with_backend(0, |b| b.dma_unmap(DmaUnmap::All)), Ok(0));
}

#[test]
fn an_idle_processor_sleeps_and_a_polling_one_does_not() {
    let idle = process(1, |_| {});
    eventually(|| (idle.report().unwrap().sleeps > 2).then_some(()));
    let polling = process(1, |options| options.poll = PollMode::Always);
    let turns = polling.report().unwrap().turns;
    eventually(|| (polling.report().unwrap().turns > turns + 1000).then_some(()));
    assert_eq!(polling.report().unwrap().sleeps, 0);
    let trapped = process(1, |options| options.doorbells = Doorbells::Trapped);
    let client = Client::connect(&trapped, 0);
    assert!(client.uar.is_none());
    assert_eq!(client.read(regs::EXT_FEATURES), regs::EXT_FEATURE_WAKE);
}
