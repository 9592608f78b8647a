//! Attributes as verbs have them, and as the engine has them.

use holdfast_wire::attr as wire;

use crate::abi;

pub(super) fn wire_cap(cap: abi::QpCap) -> wire::QpCap {
    wire::QpCap {
        max_send_wr: cap.max_send_wr,
        max_recv_wr: cap.max_recv_wr,
        max_send_sge: cap.max_send_sge,
        max_recv_sge: cap.max_recv_sge,
        max_inline_data: cap.max_inline_data,
        reserved: 0,
    }
}

fn wire_path(path: &abi::AhAttr) -> wire::AhAttr {
    wire::AhAttr {
        dgid: path.grh.dgid,
        flow_label: path.grh.flow_label,
        sgid_index: path.grh.sgid_index,
        hop_limit: path.grh.hop_limit,
        traffic_class: path.grh.traffic_class,
        sl: path.sl,
        ah_flags: path.is_global,
        port_num: path.port_num,
        ..Default::default()
    }
}

fn verbs_path(path: &wire::AhAttr) -> abi::AhAttr {
    abi::AhAttr {
        grh: abi::GlobalRoute {
            dgid: path.dgid,
            flow_label: path.flow_label,
            sgid_index: path.sgid_index,
            hop_limit: path.hop_limit,
            traffic_class: path.traffic_class,
        },
        sl: path.sl,
        is_global: path.ah_flags,
        port_num: path.port_num,
        ..Default::default()
    }
}

/// A structure of attributes from one of the other kind, most of whose fields have the same names.
macro_rules! shared_attributes {
    ($($make:ident)::+, $a:expr, $($own:tt)*) => {
        $($make)::+ {
            qp_state: $a.qp_state,
            cur_qp_state: $a.cur_qp_state,
            path_mtu: $a.path_mtu,
            path_mig_state: $a.path_mig_state,
            qkey: $a.qkey,
            rq_psn: $a.rq_psn,
            sq_psn: $a.sq_psn,
            dest_qp_num: $a.dest_qp_num,
            qp_access_flags: $a.qp_access_flags,
            pkey_index: $a.pkey_index,
            alt_pkey_index: $a.alt_pkey_index,
            en_sqd_async_notify: $a.en_sqd_async_notify,
            sq_draining: $a.sq_draining,
            max_rd_atomic: $a.max_rd_atomic,
            max_dest_rd_atomic: $a.max_dest_rd_atomic,
            min_rnr_timer: $a.min_rnr_timer,
            port_num: $a.port_num,
            timeout: $a.timeout,
            retry_cnt: $a.retry_cnt,
            rnr_retry: $a.rnr_retry,
            alt_port_num: $a.alt_port_num,
            alt_timeout: $a.alt_timeout,
            $($own)*
        }
    };
}

pub(super) fn wire_attr(a: &abi::QpAttr) -> wire::QpAttr {
    shared_attributes!(wire::QpAttr, a,
        ah_attr: wire_path(&a.ah_attr), alt_ah_attr: wire_path(&a.alt_ah_attr),
        ..Default::default())
}

pub(super) fn verbs_attr(a: &wire::QpAttr) -> abi::QpAttr {
    shared_attributes!(abi::QpAttr, a,
        ah_attr: verbs_path(&a.ah_attr), alt_ah_attr: verbs_path(&a.alt_ah_attr),
        ..Default::default())
}
