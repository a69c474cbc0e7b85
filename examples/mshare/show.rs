//! Tables and JSON.

use crate::Result;
use serde_json::{Value, json};
use std::io::Write;
use unmerged::mshare::{Content, HugePages, Listed, Part, Prot, Region};

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or("-".into(), |value| value.to_string())
}

pub(crate) fn list(found: &[Listed], as_json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if as_json {
        let all: Vec<_> = found
            .iter()
            .map(|one| {
                json!({
                    "name": one.name, "server": one.server, "uid": one.uid,
                    "mode": one.mode.map(|mode| format!("{mode:o}")), "size": one.size,
                    "base": one.base.map(|base| format!("{base:#x}")),
                    "participants": one.participants,
                })
            })
            .collect();
        writeln!(out, "{}", Value::from(all))?;
        return Ok(());
    }
    writeln!(
        out,
        "{:<24} {:>14} {:>18} {:>5} {:>6} {:>8} {:>5}",
        "name", "bytes", "address", "mode", "user", "server", "used"
    )?;
    for one in found {
        writeln!(
            out,
            "{:<24} {:>14} {:>18} {:>5} {:>6} {:>8} {:>5}",
            one.name,
            or_dash(one.size),
            or_dash(one.base.map(|base| format!("{base:#x}"))),
            or_dash(one.mode.map(|mode| format!("{mode:o}"))),
            or_dash(one.uid),
            or_dash(one.server),
            or_dash(one.participants),
        )?;
    }
    Ok(())
}

fn content(part: &Part) -> &'static str {
    match part.content {
        Content::Memory => "memory",
        Content::Nothing => "nothing",
        Content::File => "file",
        Content::Revocable => "revocable",
        Content::Huge(HugePages::M2) => "huge-2M",
        Content::Huge(HugePages::G1) => "huge-1G",
        _ => "?",
    }
}

fn prot(prot: Prot) -> &'static str {
    match prot {
        Prot::NONE => "--",
        Prot::READ => "r-",
        _ => "rw",
    }
}

pub(crate) fn region(region: &Region, heap: bool, as_json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let id = u128::from_be_bytes(region.id());
    let (stats, parts, roots) = (region.stats()?, region.parts()?, region.roots());
    let range = region.heap_range();
    let report = match &range {
        Some(_) if heap => Some(region.heap()?.check()?),
        _ => None,
    };
    if as_json {
        let parts: Vec<_> = parts
            .iter()
            .map(|part| {
                json!({
                    "start": part.range.start, "end": part.range.end, "content": content(part),
                    "access": prot(part.prot), "object": part.object, "at": part.at,
                })
            })
            .collect();
        let participants: Vec<_> = stats
            .participants
            .iter()
            .map(|one| {
                json!({
                    "pid": one.pid, "rights": one.rights.to_string(), "agent": one.has_agent,
                    "generation": one.generation, "page_tables": one.page_tables,
                    "faults": one.faults.map(|(minor, major)| [minor, major]),
                })
            })
            .collect();
        let roots: Vec<_> = roots
            .iter()
            .map(|root| {
                json!({
                    "name": root.name, "size": root.size, "align": root.align,
                    "address": format!("{:#x}", root.address),
                })
            })
            .collect();
        let all = json!({
            "name": region.name(), "id": format!("{id:032x}"), "size": region.size(),
            "base": format!("{:p}", region.base()), "memory": stats.memory,
            "generation": stats.generation, "epoch": stats.epoch, "reaped": stats.reaped,
            "page_tables": stats.page_tables, "parts": parts, "participants": participants,
            "roots": roots, "heap": range.map(|range| [range.start, range.end]),
            "heap_sound": report.as_ref().map(|report| report.is_sound()),
        });
        writeln!(out, "{all}")?;
        return Ok(());
    }
    writeln!(out, "{}  id {id:032x}", region.name())?;
    writeln!(
        out,
        "  {} bytes at {:p}, {} of them in memory",
        region.size(),
        region.base(),
        stats.memory
    )?;
    writeln!(
        out,
        "  change {}, server number {}, {} participants found dead",
        stats.generation, stats.epoch, stats.reaped
    )?;
    writeln!(out, "parts")?;
    for part in &parts {
        let object =
            part.object.map_or(String::new(), |id| format!(" object {id} at {:#x}", part.at));
        let (start, end) = (part.range.start, part.range.end);
        writeln!(out, "  {start:#14x} {end:#14x} {} {}{object}", prot(part.prot), content(part))?;
    }
    if let Some(range) = range {
        writeln!(out, "heap")?;
        let says = report.map_or(String::new(), |report| format!(" {report}"));
        writeln!(out, "  {:#14x} {:#14x}{says}", range.start, range.end)?;
    }
    if !roots.is_empty() {
        writeln!(out, "roots")?;
        for root in roots {
            writeln!(out, "  {:<24} {:#x}, {} bytes", root.name, root.address, root.size)?;
        }
    }
    writeln!(out, "participants")?;
    for one in &stats.participants {
        writeln!(
            out,
            "  {:>8} {:<36} change {}, page tables {}",
            one.pid,
            format!("{}{}", one.rights, if one.has_agent { "" } else { ", no thread" }),
            one.generation,
            or_dash(one.page_tables),
        )?;
    }
    Ok(())
}
