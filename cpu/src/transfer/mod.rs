//! Transfers of control that change privilege, mode or stack: events, far transfers, task switches.

mod event;
