//! The records of one hold: what goes into each file system's receipt, and when it changes.

use std::{cell::OnceCell, collections::BTreeMap};

use serde::Serialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

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
    about: About,
    records: BTreeMap<usize, Record>,
}

#[derive(Debug)]
struct Record {
    filesystem: serde_json::Value,
    size: usize,
}

/// Which machine, and which program.
#[derive(Debug, Default)]
struct About {
    boot_id: Option<String>,
    machine_id: Option<String>,
    product_uuid: Option<String>,
}

/// `receipt.json`, members in this order.
#[derive(Serialize)]
struct Page<'a> {
    format: u32,
    hold_id: &'a str,
    filesystem: &'a serde_json::Value,
    report: &'a RawValue,
    boot_id: Option<&'a str>,
    machine_id: Option<&'a str>,
    product_uuid: Option<&'a str>,
    holdstill: &'static str,
}

/// A report, and its text: the same in every receipt, and what takes longest in making one.
pub struct Told<'a> {
    report: &'a proto::Report,
    text: OnceCell<Box<RawValue>>,
}

impl<'a> Told<'a> {
    pub fn new(report: &'a proto::Report) -> Told<'a> {
        Told { report, text: OnceCell::new() }
    }

    fn text(&self) -> &RawValue {
        self.text.get_or_init(|| to_raw_value(&json::to_json(self.report)).expect("a JSON value serialises"))
    }
}

/// Does it hold what a copy cannot be restored without? That is left out last.
pub fn has_label(step: &proto::Step) -> bool {
    match &step.detail {
        Some(proto::step::Detail::Database(database)) => !database.backup_label.is_empty(),
        Some(proto::step::Detail::Filesystem(_) | proto::step::Detail::Hook(_)) | None => false,
    }
}

impl Records {
    pub fn new(hold_id: &str, surroundings: &Surroundings, wanted: bool) -> Records {
        let instance = &surroundings.instance;
        Records {
            wanted,
            hold_id: hold_id.into(),
            about: About {
                boot_id: instance.boot_id.clone(),
                machine_id: instance.machine_id.clone(),
                product_uuid: instance.product_uuid.clone(),
            },
            records: BTreeMap::new(),
        }
    }

    /// The receipt of the warden's target `index`; `None` if it gets none: not wanted, or its root cannot be reached through this
    /// mount (a bind mount of a subdirectory is its only one).
    pub fn prepare(
        &mut self,
        index: usize,
        told: &Told<'_>,
        superblock: &Superblock,
        facts: &Facts,
    ) -> Option<warden::Receipt> {
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
        let length = serde_json::to_vec(&self.page(&record, told.text())).map_or(0, |bytes| bytes.len());
        let record = Record { size: receipt::size_for(length, facts.receipt_room), ..record };
        let bytes = self.fitted(&record, told);
        self.records.insert(index, record);
        let sector = |state| {
            let sector = Sector {
                state,
                hold_id: self.hold_id.clone(),
                fs_uuid: facts.uuid.clone(),
                boot_id: self.about.boot_id.clone().unwrap_or_default(),
                prepared: told.report.admitted_time.map_or(0, |t| t.seconds),
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
        let told = Told::new(report);
        self.records.iter().map(|(index, record)| (*index, self.fitted(record, &told))).collect()
    }

    fn fitted(&self, record: &Record, told: &Told<'_>) -> Vec<u8> {
        let padded = |text: &RawValue| receipt::padded(&self.page(record, text), record.size);
        if let Some(bytes) = padded(told.text()) {
            return bytes;
        }
        // too much for one receipt: what was held stays, what was left out is counted
        let mut short = told.report.clone();
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
        if let Some(bytes) = padded(Told::new(&short).text()) {
            return bytes;
        }
        short.coverage.clear();
        short.problems.clear();
        short.steps.retain(has_label);
        if let Some(bytes) = padded(Told::new(&short).text()) {
            return bytes;
        }
        short.steps.clear();
        padded(Told::new(&short).text())
            .or_else(|| receipt::padded(&json!({"format": receipt::JSON_FORMAT, "hold_id": self.hold_id}), record.size))
            .unwrap_or_default()
    }

    fn page<'a>(&'a self, record: &'a Record, report: &'a RawValue) -> Page<'a> {
        Page {
            format: receipt::JSON_FORMAT,
            hold_id: &self.hold_id,
            filesystem: &record.filesystem,
            report,
            boot_id: self.about.boot_id.as_deref(),
            machine_id: self.about.machine_id.as_deref(),
            product_uuid: self.about.product_uuid.as_deref(),
            holdstill: env!("CARGO_PKG_VERSION"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hold::plan::problem;

    #[test]
    fn what_a_restore_cannot_do_without_is_left_out_last() {
        let label = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n";
        let database = proto::Database { backup_label: label.into(), ..Default::default() };
        let step = |name: &str, detail| proto::Step { name: name.into(), detail, ..Default::default() };
        let mut report = proto::Report {
            steps: (0..200).map(|n| step(&format!("fs:/srv/{n}"), None)).collect(),
            problems: vec![problem(proto::Severity::Note, "MUCH", "", &"x".repeat(9000), "")],
            ..Default::default()
        };
        report.steps.push(step("db:orders", Some(proto::step::Detail::Database(database))));
        let record = Record { filesystem: json!({}), size: 4096 };
        let bytes = Records::default().fitted(&record, &Told::new(&report));
        let kept: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON, padded");
        assert_eq!(bytes.len(), 4096);
        assert_eq!(kept["report"]["truncated"], true);
        let steps = kept["report"]["steps"].as_array().expect("a list");
        assert_eq!((steps.len(), &steps[0]["database"]["backup_label"]), (1, &label.into()));
    }
}
