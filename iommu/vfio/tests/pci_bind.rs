//! Groups move to vfio-pci and back whole, or not at all.

mod machine;

use std::fs;

use holdfast_vfio::Error;
use holdfast_vfio::pci::{Address, BindPlan, FileWriter, Step};
use machine::{Card, Kernel, Machine};

/// A NIC with two functions behind a bridge, all in group 12, and a stranger in group 13.
fn machine() -> (Machine, [Address; 4]) {
    let machine = Machine::new();
    machine.driver("vfio-pci");
    let cards = [
        ("0000:00:01.0", (0x8086, 0x1901), 0x060400, Some("pcieport"), 12),
        ("0000:03:00.0", (0x15ad, 0x07b0), 0x020000, Some("vmxnet3"), 12),
        ("0000:03:00.1", (0x15ad, 0x0820), 0x020700, Some("vmw_pvrdma"), 12),
        ("0000:04:00.0", (0x8086, 0x1521), 0x020000, Some("igb"), 13),
    ];
    let addresses = cards.map(|(address, ids, class, driver, group)| {
        machine.plug(Card { address, ids, class, driver, group: Some(group) })
    });
    (machine, addresses)
}

#[test]
fn the_whole_group_moves_and_comes_back_and_bridges_stay() {
    let (machine, [bridge, net, rdma, stranger]) = machine();
    let plan = BindPlan::bind(&machine.tree, rdma).unwrap();
    let texts: Vec<String> = plan.steps.iter().map(Step::to_string).collect();
    assert_eq!(
        texts,
        [
            "let only vfio-pci take 0000:03:00.0",
            "unbind 0000:03:00.0 from vmxnet3",
            "bind 0000:03:00.0 to vfio-pci",
            "let only vfio-pci take 0000:03:00.1",
            "unbind 0000:03:00.1 from vmw_pvrdma",
            "bind 0000:03:00.1 to vfio-pci",
        ]
    );
    assert_eq!(machine.driver_of(net).as_deref(), Some("vmxnet3"), "a plan changes nothing");

    let mut kernel = Kernel::new(&machine);
    kernel.natural = vec![(net, "vmxnet3"), (rdma, "vmw_pvrdma")];
    plan.execute(&machine.tree, &mut kernel).unwrap();
    for (address, driver) in
        [(bridge, "pcieport"), (net, "vfio-pci"), (rdma, "vfio-pci"), (stranger, "igb")]
    {
        assert_eq!(machine.driver_of(address).as_deref(), Some(driver), "{address}");
    }
    let again = BindPlan::bind(&machine.tree, net).unwrap();
    assert_eq!(again.steps, [], "nothing is left to do");

    let back = BindPlan::unbind(&machine.tree, net).unwrap();
    back.execute(&machine.tree, &mut kernel).unwrap();
    assert_eq!(machine.driver_of(net).as_deref(), Some("vmxnet3"));
    assert_eq!(machine.driver_of(rdma).as_deref(), Some("vmw_pvrdma"));
    assert_eq!(machine.override_of(net), None);
    assert_eq!(machine.override_of(rdma), None);
}

#[test]
fn a_step_that_fails_takes_everything_back() {
    for broken in 0..2 {
        let (machine, [_, net, rdma, _]) = machine();
        machine.write("sys/bus/pci/devices/0000:03:00.0/driver_override", "vmxnet3\n");
        let plan = BindPlan::bind(&machine.tree, rdma).unwrap();
        let mut kernel = Kernel::new(&machine);
        kernel.broken.insert([net, rdma][broken]);
        let error = plan.execute(&machine.tree, &mut kernel).unwrap_err();
        let Error::Bind { step, left, .. } = &error else { panic!("{error}") };
        assert_eq!(*step, format!("bind {} to vfio-pci", [net, rdma][broken]));
        assert_eq!(left, "everything is as it was before");
        assert_eq!(machine.driver_of(net).as_deref(), Some("vmxnet3"));
        assert_eq!(machine.driver_of(rdma).as_deref(), Some("vmw_pvrdma"));
        assert_eq!(machine.override_of(net).as_deref(), Some("vmxnet3"));
        assert_eq!(machine.override_of(rdma), None);
    }
}

#[test]
fn what_cannot_be_taken_back_is_named() {
    let (machine, [_, net, rdma, _]) = machine();
    let plan = BindPlan::bind(&machine.tree, rdma).unwrap();
    let mut kernel = Kernel::new(&machine);
    kernel.broken.insert(rdma);
    fs::remove_file(machine.path("sys/bus/pci/drivers/vmxnet3/bind")).unwrap();
    let error = plan.execute(&machine.tree, &mut kernel).unwrap_err();
    let Error::Bind { left, .. } = &error else { panic!("{error}") };
    assert!(left.contains(&format!("{net} could not be put back")), "{left}");
    assert_eq!(machine.driver_of(rdma).as_deref(), Some("vmw_pvrdma"));
}

#[test]
fn a_group_in_use_is_left_alone_with_all_reasons() {
    let (machine, [_, net, rdma, _]) = machine();
    let dir = "sys/bus/pci/devices/0000:03:00.0/net/ens3";
    machine.write(&format!("{dir}/flags"), "0x1003\n");
    machine.write("proc/net/route", "Iface\tDestination\nens3\t00000000\n");
    machine.write("sys/bus/pci/devices/0000:03:00.1/infiniband_verbs/uverbs0/ibdev", "vmw_pvrdma0");
    machine.process(42, "ib_write_lat", "/dev/infiniband/uverbs0");
    let error = BindPlan::bind(&machine.tree, rdma).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::InUse { group: 12, .. }), "{text}");
    assert!(text.contains("0000:03:00.0: network interface ens3 is up"), "{text}");
    assert!(text.contains("0000:03:00.1: process 42 (ib_write_lat) uses RDMA device"), "{text}");
    assert_eq!(machine.driver_of(net).as_deref(), Some("vmxnet3"));
}

#[test]
fn a_group_that_a_program_has_open_is_not_given_back() {
    let (machine, [_, _, rdma, _]) = machine();
    BindPlan::bind(&machine.tree, rdma)
        .unwrap()
        .execute(&machine.tree, &mut Kernel::new(&machine))
        .unwrap();
    machine.process(7, "testpmd", "/dev/vfio/12");
    let error = BindPlan::unbind(&machine.tree, rdma).unwrap_err();
    assert!(error.to_string().contains("process 7 (testpmd) has VFIO group 12 open"), "{error}");
    machine.process(8, "other", "/dev/vfio/13");
    fs::remove_dir_all(machine.path("proc/7")).unwrap();
    BindPlan::unbind(&machine.tree, rdma).unwrap();
}

#[test]
fn what_stands_in_the_way_of_a_plan_is_said() {
    let machine = Machine::new();
    let card =
        |address, class, group| Card { address, ids: (0x15ad, 0x0820), class, driver: None, group };
    let loose = machine.plug(card("0000:05:00.0", 0x020700, None));
    let grouped = machine.plug(card("0000:06:00.0", 0x020700, Some(3)));
    let bridge = machine.plug(card("0000:00:02.0", 0x060400, Some(3)));
    let missing = "0000:07:00.0".parse().unwrap();
    for (address, wanted) in [
        (loose, "IOMMU group"),
        (grouped, "modprobe vfio-pci"),
        (bridge, "is a bridge"),
        (missing, "there is no PCI function 0000:07:00.0"),
    ] {
        let text = BindPlan::bind(&machine.tree, address).unwrap_err().to_string();
        assert!(text.contains(wanted), "{text}");
    }
}

#[test]
fn the_writer_of_the_running_system_makes_no_files() {
    use holdfast_vfio::pci::SysfsWrite;
    let dir = tempfile::tempdir().unwrap();
    let (there, missing) = (dir.path().join("there"), dir.path().join("missing"));
    fs::write(&there, "").unwrap();
    FileWriter.write(&there, "0000:03:00.0").unwrap();
    assert_eq!(fs::read_to_string(&there).unwrap(), "0000:03:00.0");
    FileWriter.write(&missing, "x").unwrap_err();
    assert!(!missing.exists());
}
