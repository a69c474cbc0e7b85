//! The task_shared rows.

use crate::harness::Options;

pub(crate) fn rows(_options: &Options) {}
