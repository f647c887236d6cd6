//! The records of one hold: what goes into each file system's receipt, and when it changes.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    plan::Facts,
    receipt::{self, Sector, State},
    survey::Surroundings,
};
use crate::{guest::Superblock, json, proto, warden};

/// One record per file system with a receipt, by the warden's target index.
#[derive(Debug, Default)]
pub struct Records {
    wanted: bool,
    hold_id: String,
    about: serde_json::Value,
    boot_id: String,
    /// targets seen so far
    next: usize,
    records: BTreeMap<usize, Record>,
}

#[derive(Debug)]
struct Record {
    filesystem: serde_json::Value,
    size: usize,
}

impl Records {
    pub fn new(hold_id: &str, surroundings: &Surroundings, wanted: bool) -> Records {
        let instance = &surroundings.instance;
        Records {
            wanted,
            hold_id: hold_id.into(),
            boot_id: surroundings.boot_id().into(),
            about: json!({
                "boot_id": instance.boot_id,
                "machine_id": instance.machine_id,
                "product_uuid": instance.product_uuid,
                "holdstill": env!("CARGO_PKG_VERSION"),
            }),
            next: 0,
            records: BTreeMap::new(),
        }
    }

    /// The receipt of the next target; `None` if it gets none: not wanted, or its root cannot be reached through this
    /// mount (a bind mount of a subdirectory is its only one).
    pub fn prepare(
        &mut self,
        report: &proto::Report,
        superblock: &Superblock,
        facts: &Facts,
    ) -> Option<warden::Receipt> {
        let index = self.next;
        self.next += 1;
        let at_root = superblock
            .open_at
            .as_ref()
            .is_some_and(|at| at.fs_root == std::path::Path::new("/") || superblock.fs_type == "btrfs");
        if !self.wanted || !at_root {
            return None;
        }
        let filesystem = json!({
            "mount": super::plan::display(superblock),
            "type": superblock.fs_type,
            "uuid": facts.uuid,
            "disk": facts.disk,
            "mount_count": facts.ext.map(|e| e.mount_count),
            "mount_time": facts.ext.map(|e| e.mount_time),
        });
        let record = Record { filesystem, size: 0 };
        let length = serde_json::to_vec(&self.json(&record, report)).map_or(0, |bytes| bytes.len());
        let record = Record { size: receipt::size_for(length), ..record };
        let bytes = self.fitted(&record, report);
        self.records.insert(index, record);
        let sector = |state| {
            let sector = Sector {
                state,
                hold_id: self.hold_id.clone(),
                fs_uuid: facts.uuid.clone(),
                boot_id: self.boot_id.clone(),
                prepared: report.admitted_time.map_or(0, |t| t.seconds),
            };
            sector.encode()
        };
        Some(warden::Receipt {
            json: bytes,
            prepared: sector(State::Prepared),
            frozen: sector(State::Frozen),
            released: sector(State::Released),
            aborted: sector(State::Aborted),
        })
    }

    /// Every record anew, with what the report says now, each of unchanged length.
    pub fn update(&self, report: &proto::Report) -> Vec<(usize, Vec<u8>)> {
        self.records.iter().map(|(index, record)| (*index, self.fitted(record, report))).collect()
    }

    fn fitted(&self, record: &Record, report: &proto::Report) -> Vec<u8> {
        let full = self.json(record, report);
        if let Some(bytes) = receipt::padded(&full, record.size) {
            return bytes;
        }
        // too much for one receipt: what was held stays, what was left out is counted
        let mut short = report.clone();
        short.truncated = true;
        short.steps.retain(|s| s.outcome() != proto::StepOutcome::Skipped);
        for step in &mut short.steps {
            if let Some(proto::step::Detail::Hook(run)) = step.detail.as_mut() {
                run.output_tail.clear();
            }
        }
        for coverage in &mut short.coverage {
            coverage.mounts.truncate(1);
            coverage.evidence.clear();
        }
        if let Some(bytes) = receipt::padded(&self.json(record, &short), record.size) {
            return bytes;
        }
        short.coverage.clear();
        short.problems.clear();
        short.steps.clear();
        receipt::padded(&self.json(record, &short), record.size)
            .unwrap_or_else(|| receipt::padded(&json!({"hold_id": self.hold_id}), record.size).unwrap_or_default())
    }

    fn json(&self, record: &Record, report: &proto::Report) -> serde_json::Value {
        let mut whole = json!({
            "format": 1,
            "hold_id": self.hold_id,
            "filesystem": record.filesystem,
            "report": json::to_json(report),
        });
        if let (Some(whole), Some(about)) = (whole.as_object_mut(), self.about.as_object()) {
            whole.extend(about.clone());
        }
        whole
    }
}
