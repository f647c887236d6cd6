//! The machine of the story, from its start to the opened copies: pid 1 of its own PID namespace, /srv and /mnt its
//! own disks. It drives databases, writers and the real daemon, cuts both copies, opens them, and tells.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    Failure,
    agent::{self, Agent, Answer, Places},
    claims::{Claims, Table},
    command::Background,
    disk::{self, Cut, Mounted},
    ledger::{self, Ack, now},
    server::{Installed, Recovery},
    stream::{self, Durability, Engine, Stream},
};

/// Below the working directory: how many claims were made, and how many of them are not so.
pub const COUNT: &str = "count";
/// Below the working directory: the loop devices of the copies, one a line.
pub const LOOPS: &str = "loops";

const DATA: &str = "/srv";
const TRANSIENT: &str = "/mnt";
const HOLD: &str = "demo";
const LIMIT: Duration = Duration::from_secs(20);

/// The role `@stage`: `work` is the demo's tmpfs, `holdstill` the program to show.
pub fn main(work: &Path, holdstill: &Path) -> ExitCode {
    let storage = work.join("storage");
    thread::spawn(move || without_an_outside(&storage));
    let told = tell(work, holdstill).and_then(|claims| {
        print!("\nWhat this shows, each sentence checked:\n{}", claims.text());
        fs::write(work.join(COUNT), format!("{} {}", claims.count(), claims.untrue()))?;
        Ok(claims.untrue() == 0)
    });
    match told {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("holdstill demo: failed to {why}");
            ExitCode::FAILURE
        }
    }
}

/// Stdin ends when the outside is gone. Then nobody else would let go: thaw what is the demo's own and end everything.
fn without_an_outside(storage: &Path) {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    disk::thaw(storage);
    disk::thaw(DATA.as_ref());
    // This is pid 1 of the namespace: the kernel ends all others with it.
    std::process::exit(1);
}

/// A stream while it is written: its server, if it has one, and its writer.
#[derive(Debug)]
struct Live {
    stream: Stream,
    server: Option<(Installed, Background)>,
    writer: Background,
}

fn tell(work: &Path, holdstill: &Path) -> Result<Claims, Failure> {
    let (data, transient) = (Mounted::at(DATA.as_ref())?, Mounted::at(TRANSIENT.as_ref())?);
    if !(data.is_loop() && transient.is_loop()) {
        return Err("begin: /srv and /mnt are not the demo's own disks".into());
    }
    for dir in ["ledger", "socket", "log", "copy", "opened", "run", "state", "hooks.d"] {
        fs::create_dir(work.join(dir))?;
    }
    let mut claims = Claims::default();
    let storage = work.join("storage");
    let disk = storage.join("data.img");

    println!("\nA machine of its own (mount and PID namespace, disks in memory, nothing of yours is touched)");
    println!("  /srv  the data disk, {}: every database lies here", data.source);
    println!("  /mnt  a disk like a cloud's temporary one, {}: in no snapshot", transient.source);
    let forgotten = leave_on_transient(TRANSIENT.as_ref())?;
    let mut servers = vec![];
    for (name, found) in [("PostgreSQL", Installed::postgres()), ("MariaDB", Installed::mariadb())] {
        match found {
            Some(server) => servers.push(server),
            None => println!("  {name} is not installed here; the story goes on without it"),
        }
    }
    let began = now();
    let mut live = begin_streams(work, &servers)?;
    // Set-up is on the disk: whatever a copy lacks was lost in the story.
    nix::unistd::syncfs(File::open(DATA)?)?;
    for one in &live {
        println!("  a writer commits to {}", one.stream);
    }
    let places = Places {
        run: work.join("run"),
        state: work.join("state"),
        hooks: work.join("hooks.d"),
        config: work.join("holdstill.toml"),
        log: work.join("log/holdstill"),
    };
    let spoken_to: Vec<_> = live.iter().filter(|l| l.server.is_some()).map(|l| &l.stream).collect();
    fs::write(&places.config, agent::configuration(&places, DATA.as_ref(), TRANSIENT.as_ref(), &spoken_to))?;
    let holds_databases = !spoken_to.is_empty();
    let agent = Agent::serve(holdstill, &places)?;
    println!(
        "  holdstill serve runs, told what lies on /srv and that /mnt is temporary; ready in {}",
        ms(now() - began)
    );
    let only_ours = refuse_to_freeze_others(&agent, &data)?;
    claims.claim("holdstill's plan freezes the demo's data disk and no other file system", only_ours);

    println!("\nThe story");
    write_for(&mut live, Duration::from_secs(2))?;
    println!("  1. a copy of /srv's disk, cut while everybody writes (the plug is pulled on it)");
    let without = disk::cut(&storage, &disk, &work.join("copy/without.img"))?;
    write_for(&mut live, Duration::from_secs(1))?;
    println!("  2. holdstill freeze; the same copy; holdstill thaw");
    let hold = hold(&agent, &storage, &disk, &work.join("copy/inside.img"))?;
    write_for(&mut live, Duration::from_secs(1))?;
    println!("  3. the machine stops; both copies are opened as a machine restored from them would");
    let told = end_streams(live)?;
    agent.stop()?;
    let opened = Both {
        without: open(work, "without", &without, &told, holdstill)?,
        inside: open(work, "inside", &hold.cut, &told, holdstill)?,
    };

    let (without, inside) = (&without, &hold.cut);
    println!("\nHow a copy is of one instant: the file system that /srv's image lies on takes no writes while it is");
    println!("copied (frozen by the demo, as a hypervisor's storage would; for the copy's time, in both cases).\n");
    println!("{}", pauses(&told, &hold, without).text("What the writers felt: longest wait"));
    println!(
        "{}",
        transactions(&told, &hold, without, &opened).text("Acknowledged transactions missing from the copy")
    );
    println!("{}", recoveries(&told, &opened).text("Recovery the copy needed"));
    println!("{}", receipts(&opened).text("What the copy's own receipt says"));
    tell_transient(&forgotten, &hold.frozen);

    claims.claim("each copy is of one instant: its disk took no write while it was cut", {
        without.one_instant && inside.one_instant
    });
    claim_the_hold(&mut claims, &hold, holds_databases);
    claim_the_writers(&mut claims, &told, &hold, without);
    claim_the_transactions(&mut claims, &told, &hold, without, &opened);
    claim_the_copies(&mut claims, &opened);
    claim_the_transient(&mut claims, &forgotten, &hold.frozen, &opened);
    Ok(claims)
}

/// What people leave on a temporary disk because it is big and fast. Returns every file and its length.
fn leave_on_transient(on: &Path) -> Result<Vec<(PathBuf, u64)>, Failure> {
    for (name, len) in [("exports/orders-november.csv", 300_000), ("sort/run-17.tmp", 2_000_000)] {
        let path = on.join(name);
        fs::create_dir_all(path.parent().expect("it has one"))?;
        let mut file = File::create(&path)?;
        file.write_all(&vec![b'x'; len])?;
        file.sync_all()?;
    }
    Ok(disk::files(on)?)
}

/// Databases and their writers, each under full and under relaxed durability. A server each: one that flushes for
/// somebody's durable commit would flush everybody's.
fn begin_streams(work: &Path, servers: &[Installed]) -> Result<Vec<Live>, Failure> {
    let mut live = vec![];
    let kinds = std::iter::once(None).chain(servers.iter().map(Some));
    for (server, durability) in kinds.flat_map(|s| [(s, Durability::Full), (s, Durability::Relaxed)]) {
        let mut stream = Stream {
            engine: server.map_or(Engine::Sqlite, |s| s.engine),
            durability,
            at: PathBuf::new(),
            ledger: PathBuf::new(),
        };
        let name = stream.name();
        let data = Path::new(DATA).join(&name);
        stream.ledger = work.join("ledger").join(&name);
        stream.at = if server.is_some() { work.join("socket").join(&name) } else { data.clone() };
        let server = match server {
            None => {
                fs::create_dir(&data)?;
                None
            }
            Some(server) => {
                server.make(&data)?;
                Some((server.clone(), server.serve(&stream, &data, &work.join("log").join(&name))?))
            }
        };
        stream.create()?;
        live.push((stream, server));
    }
    let demo = work.join("bin/demo");
    let write = |(stream, server): (Stream, _)| {
        let log = work.join("log").join(format!("{}-writer", stream.name()));
        Ok(Live { writer: Background::start(&mut stream.writer(&demo), &log)?, stream, server })
    };
    live.into_iter().map(write).collect()
}

/// Lets the writers write, and makes sure that they do.
fn write_for(live: &mut [Live], time: Duration) -> Result<(), Failure> {
    let until = now() + time;
    while now() < until {
        thread::sleep(Duration::from_millis(50));
        for one in &mut *live {
            if let Some(status) = one.writer.ended() {
                return Err(format!("write to {}: its writer ended: {status}", one.stream).into());
            }
        }
    }
    Ok(())
}

/// A stream that is over: what was acknowledged, and the server program to open a copy with.
#[derive(Debug)]
struct Told {
    stream: Stream,
    acks: Vec<Ack>,
    server: Option<Installed>,
}

fn end_streams(live: Vec<Live>) -> Result<Vec<Told>, Failure> {
    let mut told = vec![];
    for Live { stream, server, writer } in live {
        writer.end(Signal::SIGKILL, LIMIT)?;
        let acks = ledger::read(&stream.ledger)?;
        let server = match server {
            Some((program, process)) => {
                program.stop(process)?;
                Some(program)
            }
            None => None,
        };
        told.push(Told { stream, acks, server });
    }
    Ok(told)
}

/// Before the first freeze: what would holdstill freeze? Anything but the demo's own loop device ends the demo here.
fn refuse_to_freeze_others(agent: &Agent, data: &Mounted) -> Result<bool, Failure> {
    let check = agent.ask(&["check"])?;
    if check.code != 0 {
        return Err(format!("check: {}\n{}", check.complaint(), agent.said()).into());
    }
    let planned = agent::filesystem_steps(&check.json["plan"]);
    let ours = [(format!("fs:{DATA}"), u64::from(data.major), u64::from(data.minor))];
    if planned != ours {
        return Err(format!("go on: holdstill would freeze {planned:?}, the demo allows only {ours:?}").into());
    }
    Ok(true)
}

/// The hold, as its caller saw it.
#[derive(Debug)]
struct Hold {
    /// `freeze` was asked for; everything acknowledged before this was so before the barrier
    asked: Duration,
    /// `freeze` had answered
    answered: Duration,
    /// `thaw` was asked for
    ending: Duration,
    /// `thaw` had answered
    ended: Duration,
    /// the report `freeze` answered with
    frozen: Value,
    /// the report `thaw` answered with
    thawed: Value,
    cut: Cut,
}

fn hold(agent: &Agent, storage: &Path, disk: &Path, copy: &Path) -> Result<Hold, Failure> {
    let well = |answer: Answer, verb: &str| match answer.code {
        0 => Ok(answer.json["report"].clone()),
        code => Err(Failure::from(format!("{verb}: exit {code}: {}\n{}", answer.complaint(), agent.said()))),
    };
    let asked = now();
    let frozen = agent.ask(&["freeze", "--id", HOLD, "--for", "15s"])?;
    let answered = now();
    let frozen = well(frozen, "freeze")?;
    let cut = disk::cut(storage, disk, copy);
    let ending = now();
    let thawed = agent.ask(&["thaw", HOLD])?; // whatever became of the copy
    let ended = now();
    let thawed = well(thawed, "thaw")?;
    Ok(Hold { asked, answered, ending, ended, frozen, thawed, cut: cut? })
}

/// One copy, opened.
#[derive(Debug)]
struct Opened {
    /// the raw file system asked for its journal to be replayed
    journal: bool,
    receipt: Answer,
    /// by stream name: the transactions in it, and what its database had to replay
    databases: BTreeMap<String, (std::collections::BTreeSet<u64>, String)>,
    /// names of all files on it
    files: Vec<PathBuf>,
}

#[derive(Debug)]
struct Both {
    without: Opened,
    inside: Opened,
}

fn open(work: &Path, which: &str, cut: &Cut, told: &[Told], holdstill: &Path) -> Result<Opened, Failure> {
    let journal = disk::needs_recovery(&cut.image)?;
    let on = work.join("opened").join(which);
    fs::create_dir(&on)?;
    let note = |m: &Mounted| -> Result<(), Failure> {
        let mut loops = OpenOptions::new().create(true).append(true).open(work.join(LOOPS))?;
        Ok(writeln!(loops, "{}", m.kernel_name())?)
    };
    // first as it was cut, its journal not replayed: that is what the receipt testifies about
    note(&disk::mount(&cut.image, &on, "ro,noload")?)?;
    let receipt = receipt(holdstill, &on)?;
    disk::unmount(&on)?;
    // then as a restored machine would
    note(&disk::mount(&cut.image, &on, "rw")?)?;
    let files = disk::files(&on)?.into_iter().map(|(path, _)| path).collect();
    let mut databases = BTreeMap::new();
    for told in told {
        let name = told.stream.name();
        let data = on.join(&name);
        let found = match &told.server {
            None => {
                let stream = Stream { at: data.clone(), ..told.stream.clone() };
                let frames = stream::sqlite_recover(&data)?;
                (stream.read()?, format!("{frames} frames of its log"))
            }
            Some(server) => {
                let stream = Stream { at: work.join("socket").join(format!("{which}-{name}")), ..told.stream.clone() };
                let log = work.join("log").join(format!("{which}-{name}"));
                server.forget_running(&data)?;
                let process = server.serve(&stream, &data, &log)?;
                let rows = stream.read()?;
                server.stop(process)?;
                let replayed = match server.recovery(&log)? {
                    Recovery::Nothing => "nothing".to_owned(),
                    Recovery::Replayed { bytes } => format!("{} of its log", size(bytes)),
                    Recovery::Untold => "some of its log".to_owned(),
                };
                (rows, replayed)
            }
        };
        databases.insert(name, found);
    }
    disk::unmount(&on)?;
    Ok(Opened { journal, receipt, databases, files })
}

/// `holdstill receipt DIR --json`: no daemon is asked, the copy speaks for itself.
fn receipt(holdstill: &Path, on: &Path) -> Result<Answer, Failure> {
    let mut verb = Command::new(holdstill);
    let ran = crate::command::output(verb.arg("receipt").arg(on).arg("--json").current_dir("/"), LIMIT)?;
    Ok(Answer {
        code: ran.status.code().ok_or("run holdstill receipt: it was killed")?,
        json: serde_json::from_slice(&ran.stdout).unwrap_or(Value::Null),
        stderr: String::from_utf8_lossy(&ran.stderr).into_owned(),
    })
}

fn ms(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1000.0)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

fn pauses(told: &[Told], hold: &Hold, without: &Cut) -> Table {
    let mut table = Table::default();
    let felt = |pause: Option<Duration>| pause.map_or("it never went on".to_owned(), ms);
    for one in told {
        let at_cut = ledger::longest_pause(&one.acks, without.began, without.ended);
        let at_hold = ledger::longest_pause(&one.acks, hold.asked, hold.ended);
        table.row(one.stream.to_string(), felt(at_cut), felt(at_hold));
    }
    table.row(
        "of which the demo's storage stood still",
        ms(without.ended - without.began),
        ms(hold.cut.ended - hold.cut.began),
    );
    let held = agent::duration(&hold.thawed, "held_took");
    table.row("and holdstill held the machine still", "-", held.map_or("it does not say".to_owned(), ms));
    table
}

/// The moment up to which an acknowledged transaction must be in the copy made inside the hold: the cut, for whoever
/// writes to the disk before acknowledging (and for SQLite, which hands every commit to the kernel); the hold's
/// beginning for a relaxed server, which answers from its memory even while the disk stands still.
fn instant_inside(stream: &Stream, hold: &Hold) -> Duration {
    match (stream.engine, stream.durability) {
        (Engine::Sqlite, _) | (_, Durability::Full) => hold.cut.began,
        (Engine::Postgres | Engine::Mariadb, Durability::Relaxed) => hold.asked,
    }
}

fn answers(one: &Told, hold: &Hold, without: &Cut, opened: &Both) -> [ledger::Answer; 2] {
    let rows = |o: &Opened| o.databases[&one.stream.name()].0.clone();
    [
        ledger::answer(&one.acks, without.began, &rows(&opened.without)),
        ledger::answer(&one.acks, instant_inside(&one.stream, hold), &rows(&opened.inside)),
    ]
}

fn transactions(told: &[Told], hold: &Hold, without: &Cut, opened: &Both) -> Table {
    let mut table = Table::default();
    let text = |a: ledger::Answer| format!("{} of {}", a.lost, a.acknowledged);
    for one in told {
        let [at_cut, at_hold] = answers(one, hold, without, opened);
        table.row(one.stream.to_string(), text(at_cut), text(at_hold));
        if instant_inside(&one.stream, hold) != hold.cut.began {
            let all = ledger::answer(&one.acks, hold.cut.began, &opened.inside.databases[&one.stream.name()].0);
            let (lost, late) = (all.lost - at_hold.lost, all.acknowledged - at_hold.acknowledged);
            table.row("  answered from memory after the hold was asked for", "-", format!("{lost} of {late}"));
        }
    }
    table
}

fn recoveries(told: &[Told], opened: &Both) -> Table {
    let mut table = Table::default();
    let journal = |o: &Opened| if o.journal { "replayed its journal" } else { "none" };
    table.row("ext4", journal(&opened.without), journal(&opened.inside));
    for name in told.iter().map(|t| t.stream.name()) {
        table.row(name.replace('-', ", "), &opened.without.databases[&name].1, &opened.inside.databases[&name].1);
    }
    table
}

fn receipts(opened: &Both) -> Table {
    let mut table = Table::default();
    let or_none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
    let field = |o: &Opened, key: &str| or_none(agent::text(&o.receipt.json, key));
    table.row("state", field(&opened.without, "state"), field(&opened.inside, "state"));
    table.row("hold", field(&opened.without, "hold_id"), field(&opened.inside, "hold_id"));
    table
}

fn tell_transient(forgotten: &[(PathBuf, u64)], frozen: &Value) {
    println!("What lies on /mnt and is in neither copy");
    for (path, len) in forgotten {
        println!("  {}  {}", path.display(), size(*len));
    }
    match agent::coverage(frozen, TRANSIENT) {
        Some(covered) => {
            let used = covered["used_bytes"].as_u64().unwrap_or(0);
            let (disk, durability) = (agent::text(covered, "disk"), agent::text(covered, "durability"));
            println!("  holdstill said so while holding: {disk} on /mnt is {durability}, {} lie there", size(used));
        }
        None => println!("  holdstill's report does not mention /mnt"),
    }
}

fn claim_the_hold(claims: &mut Claims, hold: &Hold, holds_databases: bool) {
    let (level, meaning) = match holds_databases {
        true => ("application", "every database and file system in it was held"),
        false => ("filesystem", "every file system in it was held; no database here has to be spoken to"),
    };
    let (phase, reached) = (agent::text(&hold.frozen, "phase"), agent::text(&hold.frozen, "consistency"));
    claims.claim(format!("the hold reached the level `{level}`: {meaning}"), phase == "held" && reached == level);
    let verdict = agent::text(&hold.thawed, "verdict");
    claims.claim("at thaw everything was still held: the verdict is `unbroken`", verdict == "unbroken");
}

fn claim_the_writers(claims: &mut Claims, told: &[Told], hold: &Hold, without: &Cut) {
    let quiet = |one: &Told| !one.acks.iter().any(|a| a.at > hold.answered && a.at < hold.ending);
    let bound = |one: &Told| instant_inside(&one.stream, hold) == hold.cut.began;
    claims.claim(
        format!("while held ({}), no commit that needs the disk was acknowledged", ms(hold.ending - hold.answered)),
        told.iter().filter(|t| bound(t)).all(quiet),
    );
    let went_on = |one: &Told| {
        ledger::longest_pause(&one.acks, without.began, without.ended).is_some()
            && ledger::longest_pause(&one.acks, hold.asked, hold.ended).is_some()
    };
    claims.claim("every writer went on, after the copy without a hold and after the thaw", told.iter().all(went_on));
}

fn claim_the_transactions(claims: &mut Claims, told: &[Told], hold: &Hold, without: &Cut, opened: &Both) {
    let lost = |durability: Durability| {
        let of = told.iter().filter(|t| t.stream.durability == durability);
        let [mut at_cut, mut at_hold] = [0, 0];
        for one in of {
            let [a, b] = answers(one, hold, without, opened);
            (at_cut, at_hold) = (at_cut + a.lost, at_hold + b.lost);
        }
        (at_cut, at_hold)
    };
    let (at_cut, at_hold) = lost(Durability::Full);
    claims.claim(
        "durable databases lost no acknowledged transaction either way: for them a hold is about less recovery and a proof",
        at_cut == 0 && at_hold == 0,
    );
    let (at_cut, at_hold) = lost(Durability::Relaxed);
    claims.claim(
        match at_cut {
            0 => "under relaxed durability the hold lost nothing acknowledged before it (nor, this time, did the other copy)".to_owned(),
            lost => format!("under relaxed durability the copy without a hold lost {lost}, the one inside it lost none of those before it"),
        },
        at_hold == 0,
    );
}

fn claim_the_copies(claims: &mut Claims, opened: &Both) {
    let whole = opened.without.databases.len() == opened.inside.databases.len() && !opened.inside.databases.is_empty();
    claims.claim("every database opened from both copies, and every row in it is one that was written", whole);
    claims.claim(
        "the copy without a hold asks for journal recovery; the one inside it was cut from a file system at rest",
        opened.without.journal && !opened.inside.journal,
    );
    let state = |o: &Opened| agent::text(&o.receipt.json, "state").to_owned();
    let none = opened.without.receipt.code == 1;
    claims.claim("the copy without a hold has no receipt: it can prove nothing about itself", none);
    let inside = &opened.inside.receipt;
    let proves = inside.code == 0 && state(&opened.inside) == "frozen" && agent::text(&inside.json, "hold_id") == HOLD;
    claims.claim(format!("the copy inside the hold carries its receipt: frozen, by the hold `{HOLD}`"), proves);
}

fn claim_the_transient(claims: &mut Claims, forgotten: &[(PathBuf, u64)], frozen: &Value, opened: &Both) {
    let names: Vec<_> = forgotten.iter().filter_map(|(path, _)| path.file_name()).collect();
    let missing = |o: &Opened| !o.files.iter().any(|f| f.file_name().is_some_and(|n| names.contains(&n)));
    let bytes: u64 = forgotten.iter().map(|(_, len)| len).sum();
    let named = agent::coverage(frozen, TRANSIENT).is_some_and(|c| {
        agent::text(c, "durability") == "transient" && c["used_bytes"].as_u64().is_some_and(|used| used >= bytes)
    });
    claims.claim(
        format!(
            "the {} files on /mnt are in neither copy, and holdstill named that disk before anybody missed it",
            names.len()
        ),
        named && missing(&opened.without) && missing(&opened.inside),
    );
}
