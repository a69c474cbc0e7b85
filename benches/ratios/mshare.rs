//! The mshare rows.

use crate::harness::Options;

pub(crate) fn rows(_options: &Options) {}
