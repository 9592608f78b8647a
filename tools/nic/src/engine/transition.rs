//! Which state changes a queue pair makes, with which attributes: the InfiniBand specification's
//! table (IBTA 1.4, 11.2.4.2), as Linux's `ib_modify_qp_is_ok` states it.

use holdfast_wire::attr::{QpAttr, QpState, QpType, mask as m, mtu_bytes};

use super::config::Limits;
use super::error::Error;
use super::mr::ACCESS_IGNORED;

/// Attributes that a change needs and may have besides.
type Masks = (u32, u32);

/// The attributes of a change from one state to another; `None` when there is no such change.
fn masks(qp_type: QpType, from: QpState, to: QpState) -> Option<Masks> {
    use QpState::*;
    let rc = qp_type == QpType::Rc;
    let init = match qp_type {
        QpType::Rc => m::PKEY_INDEX | m::PORT | m::ACCESS_FLAGS,
        QpType::Gsi => m::PKEY_INDEX | m::QKEY,
        _ => m::PKEY_INDEX | m::PORT | m::QKEY,
    };
    let running = match rc {
        true => m::CUR_STATE | m::ACCESS_FLAGS | m::ALT_PATH | m::PATH_MIG_STATE | m::MIN_RNR_TIMER,
        false => m::CUR_STATE | m::QKEY,
    };
    Some(match (from, to) {
        (_, Reset | Error) => (0, 0),
        (Reset, Init) => (init, 0),
        (Init, Init) => (0, init),
        (Init, ReadyToReceive) if rc => (
            m::AV
                | m::PATH_MTU
                | m::DEST_QPN
                | m::RQ_PSN
                | m::MAX_DEST_RD_ATOMIC
                | m::MIN_RNR_TIMER,
            m::ALT_PATH | m::ACCESS_FLAGS | m::PKEY_INDEX,
        ),
        (Init, ReadyToReceive) => (0, m::PKEY_INDEX | m::QKEY),
        (ReadyToReceive, ReadyToSend) if rc => {
            (m::TIMEOUT | m::RETRY_CNT | m::RNR_RETRY | m::SQ_PSN | m::MAX_QP_RD_ATOMIC, running)
        }
        (ReadyToReceive, ReadyToSend) => (m::SQ_PSN, running),
        (ReadyToSend | SendQueueDrained, ReadyToSend) => (0, running),
        (SendQueueError, ReadyToSend) if !rc => (0, running),
        (ReadyToSend, SendQueueDrained) => (0, m::EN_SQD_ASYNC_NOTIFY),
        (SendQueueDrained, SendQueueDrained) if rc => (
            0,
            m::PORT
                | m::AV
                | m::TIMEOUT
                | m::RETRY_CNT
                | m::RNR_RETRY
                | m::MAX_QP_RD_ATOMIC
                | m::MAX_DEST_RD_ATOMIC
                | m::ALT_PATH
                | m::ACCESS_FLAGS
                | m::PKEY_INDEX
                | m::MIN_RNR_TIMER
                | m::PATH_MIG_STATE,
        ),
        (SendQueueDrained, SendQueueDrained) => (0, m::PKEY_INDEX | m::QKEY),
        _ => return None,
    })
}

/// Checks a MODIFY_QP and says which state the queue pair will be in.
pub(crate) fn check(
    qp_type: QpType,
    state: QpState,
    mask: u32,
    new: &QpAttr,
    limits: &Limits,
) -> Result<QpState, Error> {
    let current = |value: u32| QpState::try_from(value).ok();
    if mask & m::CUR_STATE != 0 && current(new.cur_qp_state) != Some(state) {
        let to = current(new.qp_state).unwrap_or(state);
        return Err(Error::Transition { from: state, to });
    }
    let to = if mask & m::STATE != 0 {
        current(new.qp_state)
            .ok_or(Error::Invalid { what: "queue pair state", value: new.qp_state.into() })?
    } else {
        state
    };
    let (needs, may) = masks(qp_type, state, to).ok_or(Error::Transition { from: state, to })?;
    let missing = needs & !mask;
    if missing != 0 {
        return Err(Error::Missing { missing });
    }
    // Leaving for good needs nothing, and what comes with it is of no interest.
    let leaves = matches!(to, QpState::Reset | QpState::Error);
    let extra = mask & !(needs | may | m::STATE | m::CUR_STATE);
    if extra != 0 && !leaves {
        return Err(Error::Excess { extra });
    }
    if !leaves {
        check_values(mask, new, limits)?;
    }
    Ok(to)
}

/// Checks the values of the attributes that are meant.
fn check_values(mask: u32, new: &QpAttr, limits: &Limits) -> Result<(), Error> {
    let rd_atomic = u64::from(limits.max_rd_atomic);
    let access = u64::from(new.qp_access_flags & !ACCESS_IGNORED);
    let rows: [(u32, &'static str, u64, u64); 11] = [
        (m::PKEY_INDEX, "partition key index", new.pkey_index.into(), 0),
        (m::QKEY, "queue key", new.qkey.into(), u32::MAX.into()),
        (m::PATH_MTU, "path MTU code", new.path_mtu.into(), limits.max_mtu.into()),
        (m::TIMEOUT, "timeout code", new.timeout.into(), 31),
        (m::RETRY_CNT, "retry count", new.retry_cnt.into(), 7),
        (m::RNR_RETRY, "RNR retry count", new.rnr_retry.into(), 7),
        (m::MAX_QP_RD_ATOMIC, "max_rd_atomic", new.max_rd_atomic.into(), rd_atomic),
        (m::MAX_DEST_RD_ATOMIC, "max_dest_rd_atomic", new.max_dest_rd_atomic.into(), rd_atomic),
        (m::MIN_RNR_TIMER, "RNR timer code", new.min_rnr_timer.into(), 31),
        (m::DEST_QPN, "destination number", new.dest_qp_num.into(), 0xff_ffff),
        (m::ACCESS_FLAGS, "access flags", access, 0x7f),
    ];
    for (bit, what, value, limit) in rows {
        if mask & bit != 0 && value > limit {
            return Err(Error::Limit { what, value, limit });
        }
    }
    if mask & m::PORT != 0 && new.port_num != 1 {
        return Err(Error::Invalid { what: "port", value: new.port_num.into() });
    }
    if mask & m::PATH_MTU != 0 && mtu_bytes(new.path_mtu).is_none() {
        return Err(Error::Invalid { what: "path MTU code", value: new.path_mtu.into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use QpState::*;

    #[test]
    fn the_usual_way_up_is_open_and_shortcuts_are_not() {
        let all = QpState::ALL;
        let up = [
            (Reset, Init),
            (Init, Init),
            (Init, ReadyToReceive),
            (ReadyToReceive, ReadyToSend),
            (ReadyToSend, ReadyToSend),
            (ReadyToSend, SendQueueDrained),
            (SendQueueDrained, SendQueueDrained),
            (SendQueueDrained, ReadyToSend),
        ];
        for &from in all {
            for &to in all {
                let leaves = matches!(to, Reset | Error);
                let open = masks(QpType::Rc, from, to).is_some();
                assert_eq!(open, leaves || up.contains(&(from, to)), "{from:?} to {to:?}");
            }
        }
        assert!(masks(QpType::Ud, SendQueueError, ReadyToSend).is_some());
    }

    #[test]
    fn hints_among_the_access_flags_are_ignored_and_unknown_ones_refused() {
        let limits = Limits::default();
        let mask = m::STATE | m::PKEY_INDEX | m::PORT | m::ACCESS_FLAGS;
        for (flags, sound) in [(0x7f, true), (0x80, true), (1 << 20, true), (0x100, false)] {
            let qp_state = Init.wire();
            let attr =
                QpAttr { qp_state, port_num: 1, qp_access_flags: flags, ..QpAttr::default() };
            assert_eq!(check(QpType::Rc, Reset, mask, &attr, &limits).is_ok(), sound, "{flags:#x}");
        }
    }

    #[test]
    fn a_missing_attribute_is_named() {
        let attr = QpAttr { qp_state: Init.wire(), port_num: 1, ..QpAttr::default() };
        let mask = m::STATE | m::PKEY_INDEX | m::PORT;
        let limits = Limits::default();
        assert_eq!(
            check(QpType::Rc, Reset, mask, &attr, &limits),
            Err(super::Error::Missing { missing: m::ACCESS_FLAGS })
        );
        assert_eq!(check(QpType::Rc, Reset, mask | m::ACCESS_FLAGS, &attr, &limits), Ok(Init));
        assert_eq!(
            check(QpType::Rc, Reset, mask | m::ACCESS_FLAGS | m::SQ_PSN, &attr, &limits),
            Err(super::Error::Excess { extra: m::SQ_PSN })
        );
    }
}
