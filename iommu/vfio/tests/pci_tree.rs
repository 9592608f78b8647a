//! What is read from sysfs: functions, what uses them, what to do next.

mod machine;

use std::fs;

use holdfast_vfio::Error;
use holdfast_vfio::kernel::refuse_noiommu;
use holdfast_vfio::pci::{Address, BindPlan, NextStep, Reason, in_use, known, next_step};
use machine::{Card, Kernel, Machine};

const PVRDMA: (u16, u16) = (0x15ad, 0x0820);

fn card(address: &'static str, ids: (u16, u16), class: u32) -> Card {
    Card { address, ids, class, driver: None, group: Some(1) }
}

#[test]
fn addresses_are_read_with_and_without_their_domain() {
    for (text, shown) in [
        ("0000:03:00.1", Some("0000:03:00.1")),
        ("03:1f.7", Some("0000:03:1f.7")),
        ("10000:e1:00.0", Some("10000:e1:00.0")),
        ("ABCD:EF:00.0", Some("abcd:ef:00.0")),
        ("0000:03:20.0", None),
        ("0000:03:00.8", None),
        ("0000:3:00.0", None),
        ("0000:03:00", None),
        ("+000:03:00.0", None),
        ("0000:03:00.0/../../x", None),
        ("", None),
    ] {
        let found = text.parse::<Address>();
        assert_eq!(found.ok().map(|a| a.to_string()).as_deref(), shown, "{text}");
    }
}

#[test]
fn the_node_of_a_function_is_known_where_the_firmware_says_it() {
    let machine = Machine::new();
    let address = machine.plug(card("0000:03:00.0", PVRDMA, 0x020000));
    let file = format!("sys/bus/pci/devices/{address}/numa_node");
    assert_eq!(machine.tree.numa_node(address), None, "a kernel without NUMA");
    for (text, node) in [("1\n", Some(1)), ("-1\n", None)] {
        machine.write(&file, text);
        assert_eq!(machine.tree.numa_node(address), node);
    }
}

#[test]
fn rdma_functions_are_known_by_class_by_ids_or_by_the_kernels_word() {
    let machine = Machine::new();
    for (address, ids, class) in [
        ("0000:01:00.0", PVRDMA, 0x020000),
        ("0000:01:00.1", (0x1111, 0x2222), 0x020700),
        ("0000:01:00.2", (0x15b3, 0x1017), 0x020000),
        ("0000:01:00.3", (0x15b3, 0x1976), 0x060400),
        ("0000:01:00.4", (0x8086, 0x1592), 0x020000),
        ("0000:01:00.5", (0x8086, 0x1521), 0x020000),
    ] {
        machine.plug(card(address, ids, class));
    }
    machine.write("sys/bus/pci/devices/0000:01:00.4/infiniband/irdma0/node_type", "1: CA");
    let found = machine.tree.rdma_functions().unwrap();
    let addresses: Vec<String> = found.iter().map(|f| f.address.to_string()).collect();
    assert_eq!(addresses, ["0000:01:00.0", "0000:01:00.1", "0000:01:00.2", "0000:01:00.4"]);
    assert_eq!(found[3].rdma_devices, ["irdma0"]);
    let supported: Vec<bool> =
        found.iter().map(|f| known(f).is_some_and(|k| k.supported)).collect();
    assert_eq!(supported, [true, false, false, false]);
    assert_eq!(machine.tree.functions().unwrap().len(), 6);
    assert_eq!(machine.tree.group(1).unwrap().len(), 6);
}

#[test]
fn a_machine_without_pci_has_no_functions() {
    let machine = Machine::new();
    assert_eq!(machine.tree.functions().unwrap(), []);
    let missing = "0000:01:00.0".parse().unwrap();
    assert!(matches!(machine.tree.function(missing), Err(Error::NoFunction { .. })));
}

#[test]
fn an_interface_is_in_use_when_it_is_up_and_has_an_address_or_a_master() {
    let route = "Iface\tDestination\nlo\t0\nens3\t00000000\n";
    let global = "20010db8000000000000000000000001 02 40 00 80     ens3\n";
    let local = "fe800000000000000000000000000001 02 40 20 80     ens3\n";
    let cases = [
        ("down", "0x1002", "", "", false, false),
        ("down with a stale route", "0x1002", route, global, false, false),
        ("up and bare", "0x1003", "", "", false, false),
        ("up with a link-local address", "0x1003", "", local, false, false),
        ("up with a route", "0x1003", route, "", false, true),
        ("up with an IPv6 address", "0x1003", "", global, false, true),
        ("in a bond", "0x1002", "", "", true, true),
    ];
    for (what, flags, routes, inet6, master, used) in cases {
        let machine = Machine::new();
        let address = machine.plug(card("0000:01:00.0", PVRDMA, 0x020000));
        let dir = "sys/bus/pci/devices/0000:01:00.0/net/ens3";
        machine.write(&format!("{dir}/flags"), flags);
        machine.write("proc/net/route", routes);
        machine.write("proc/net/if_inet6", inet6);
        if master {
            machine.link(&format!("{dir}/master"), "../../bond0");
        }
        let function = machine.tree.function(address).unwrap();
        let reasons = in_use(&machine.tree, &function).unwrap();
        assert_eq!(!reasons.is_empty(), used, "{what}: {reasons:?}");
    }
}

#[test]
fn a_disk_is_in_use_when_it_is_mounted_swap_or_part_of_another() {
    let cases: [(&str, &str, &str, bool, Option<&str>); 6] = [
        ("idle", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "", false, None),
        (
            "mounted",
            "22 1 259:2 / /srv rw - xfs /dev/nvme0n1p1 rw\n",
            "",
            false,
            Some("mounted on /srv"),
        ),
        (
            "btrfs",
            "22 1 0:31 / /b rw shared:1 - btrfs /dev/nvme0n1p1 rw\n",
            "",
            false,
            Some("mounted on /b"),
        ),
        ("swap", "", "Filename Type\n/dev/nvme0n1p1 partition 1 0 -2\n", false, Some("is swap")),
        ("raid", "", "", true, Some("is part of md0")),
        ("a similar name", "22 1 9:9 / / rw - ext4 /dev/nvme0n1p10 rw\n", "", false, None),
    ];
    for (what, mounts, swaps, raid, wanted) in cases {
        let machine = Machine::new();
        let address = machine.plug(card("0000:02:00.0", (0x144d, 0xa808), 0x010802));
        let real = "sys/devices/pci0000:00/0000:02:00.0/nvme/nvme0/nvme0n1/nvme0n1p1";
        machine.write(&format!("{real}/dev"), "259:2\n");
        machine.link("sys/class/block/nvme0n1p1", machine.path(real));
        let other = "sys/devices/pci0000:00/0000:09:00.0/ata1/sda1";
        machine.write(&format!("{other}/dev"), "8:1\n");
        machine.link("sys/class/block/sda1", machine.path(other));
        machine.write("proc/self/mountinfo", mounts);
        machine.write("proc/swaps", swaps);
        if raid {
            machine.link(&format!("{real}/holders/md0"), "../../md0");
        }
        let function = machine.tree.function(address).unwrap();
        let reasons = in_use(&machine.tree, &function).unwrap();
        match (wanted, &reasons[..]) {
            (None, []) => {}
            (Some(wanted), [Reason::Block { device, how }]) => {
                assert_eq!(device, "nvme0n1p1", "{what}");
                assert!(how.contains(wanted.trim_start_matches("is ")), "{what}: {how}");
            }
            _ => panic!("{what}: {reasons:?}"),
        }
    }
}

#[test]
fn each_state_of_a_function_has_its_next_step() {
    let machine = Machine::new();
    let mut loose = card("0000:01:00.0", PVRDMA, 0x020700);
    loose.group = None;
    let loose = machine.plug(loose);
    let other = machine.plug(card("0000:02:00.0", (0x15b3, 0x1017), 0x020000));
    let ours = machine.plug(Card {
        address: "0000:03:00.0",
        ids: PVRDMA,
        class: 0x020700,
        driver: Some("vmw_pvrdma"),
        group: Some(5),
    });
    let step =
        |address| next_step(&machine.tree, &machine.tree.function(address).unwrap()).unwrap();
    assert_eq!(step(loose), NextStep::EnableIommu);
    assert_eq!(step(other), NextStep::Unsupported);
    assert_eq!(step(ours), NextStep::LoadVfio);
    machine.driver("vfio-pci");
    assert_eq!(step(ours), NextStep::Bind(ours));
    assert_eq!(step(ours).to_string(), "holdfast bind 0000:03:00.0");

    let dir = "sys/bus/pci/devices/0000:03:00.0/net/ens9";
    machine.write(&format!("{dir}/flags"), "0x1003");
    machine.write("proc/net/route", "Iface\nens9\n");
    assert!(matches!(step(ours), NextStep::Release(reasons) if reasons.len() == 1));
    machine.write(&format!("{dir}/flags"), "0x1002");

    let plan = BindPlan::bind(&machine.tree, ours).unwrap();
    plan.execute(&machine.tree, &mut Kernel::new(&machine)).unwrap();
    assert_eq!(step(ours), NextStep::Ready);
    machine.process(9, "holdfast", "/dev/vfio/5");
    assert!(matches!(step(ours), NextStep::Busy(reasons) if reasons.len() == 1));
    fs::remove_dir_all(machine.path("proc/9")).unwrap();

    // A member that a kernel driver holds makes the group not viable.
    machine.plug(Card {
        address: "0000:03:00.1",
        ids: (0x8086, 0x1521),
        class: 0x020000,
        driver: Some("igb"),
        group: Some(5),
    });
    assert_eq!(step(ours), NextStep::Bind(ours));
}

#[test]
fn a_group_without_an_iommu_is_refused() {
    let machine = Machine::new();
    refuse_noiommu(&machine.tree, 4).unwrap();
    machine.write("dev/vfio/noiommu-4", "");
    let error = refuse_noiommu(&machine.tree, 4).unwrap_err();
    assert!(matches!(error, Error::NoIommu { group: 4 }), "{error}");
    machine.write("sys/kernel/iommu_groups/6/name", "vfio-noiommu\n");
    refuse_noiommu(&machine.tree, 6).unwrap_err();
}
