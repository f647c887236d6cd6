//! One case, two agents: each is tried in a guest of its own, at the same time, and each must end as the table says. What
//! became of them is printed at the end of the run, whoever was right.

use std::{
    cell::RefCell,
    fs,
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    lab::{Lab, disk, guest_agent::Host},
    machine::{Agent, Boot, Holdstill, Inside, Machine, Place, QemuGa, agent::Setup},
};

/// A case of the table: what happens, and how it ends for each agent.
#[derive(Clone)]
pub struct Case {
    /// its number in the field study of what goes wrong with guest agents
    pub id: &'static str,
    pub what: &'static str,
    pub run: fn(&Trial) -> Outcome,
    pub holdstill: &'static str,
    pub qemu_ga: &'static str,
}

/// A row of the table; the last two say how it ends for holdstill, and for the stock agent.
pub fn case(
    id: &'static str,
    what: &'static str,
    run: fn(&Trial) -> Outcome,
    holdstill: &'static str,
    qemu_ga: &'static str,
) -> Case {
    Case { id, what, run, holdstill, qemu_ga }
}

/// How a case ended for an agent: a few words that are compared, and what is only shown.
pub struct Outcome {
    word: String,
    detail: String,
}

impl Outcome {
    #[must_use]
    pub fn with(self, detail: impl Into<String>) -> Outcome {
        Outcome { detail: detail.into(), ..self }
    }

    #[must_use]
    pub fn took(self, took: Duration) -> Outcome {
        self.with(format!("{:.1} s", took.as_secs_f64()))
    }
}

pub fn ends(word: impl Into<String>) -> Outcome {
    Outcome { word: word.into(), detail: String::new() }
}

/// Lets go within `limit`, or stays frozen.
pub fn lets_go_or_not(guest: &Inside, limit: Duration) -> Outcome {
    match guest.thaws_within(limit) {
        Some(took) => ends("lets go").took(took),
        None => ends("stays frozen"),
    }
}

/// A guest with an agent, and a host that asks it.
pub struct Trial<'a> {
    pub guest: &'a Machine,
    pub agent: &'a dyn Agent,
    pub setup: &'a Setup,
    pub boot: &'a Boot,
    host: RefCell<Option<Host>>,
}

impl Trial<'_> {
    /// The connection to the agent, made if there is none.
    pub fn host<T>(&self, with: impl FnOnce(&mut Host) -> T) -> T {
        let mut kept = self.host.borrow_mut();
        let host = kept.get_or_insert_with(|| {
            let mut host = self.guest.host();
            self.agent.answers(&mut host);
            host
        });
        with(host)
    }

    /// The host hangs up.
    pub fn hang_up(&self) {
        self.host.take();
    }

    /// Connects without a word: what comes first is what was left over.
    pub fn connect(&self) {
        *self.host.borrow_mut() = Some(self.guest.host());
    }

    pub fn ask(&self, command: &str, arguments: Value) -> Value {
        self.host(|host| host.ask(command, arguments))
    }

    pub fn status(&self) -> Value {
        self.ask("guest-fsfreeze-status", Value::Null)
    }

    pub fn thaw(&self) -> Value {
        self.ask("guest-fsfreeze-thaw", Value::Null)
    }

    /// Freezes both file systems, and looks.
    pub fn freeze(&self) {
        assert_eq!(self.ask("guest-fsfreeze-freeze", Value::Null), json!(2));
        assert!(self.guest.is_frozen(), "it says so, but it is not frozen");
    }

    /// What the hooks have noted so far, in one line.
    pub fn marks(&self) -> String {
        self.guest.run("cat /run/marks 2>/dev/null").1.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Starts the agent again, as whoever supervises it would.
    pub fn start_again(&self) {
        self.hang_up();
        self.agent.start(self.guest, self.setup);
    }

    /// As it was at first, for the next case in this guest.
    fn tidy(&self) {
        self.hang_up();
        self.thaw();
        self.guest.run("/sbin/fsfreeze -u /mnt/data; /sbin/fsfreeze -u /");
        assert_eq!(self.status(), json!("thawed"));
        self.guest.run("rm -f /run/marks");
    }
}

/// The hook of every case: it notes that it was called.
pub const MARKS: &str = "echo $1 >>/run/marks";

/// How the agents of a group of cases are set up.
pub fn usual() -> Setup {
    Setup {
        settings: vec![("hold.max", "\"6s\""), ("hold.unclaimed", "\"3s\"")],
        hook: Some(MARKS),
        ..Setup::default()
    }
}

/// Tries one case with each agent.
pub fn compare(lab: &Lab, case: &Case) {
    compare_in(lab, &Boot::small(), &usual(), std::slice::from_ref(case));
}

/// Tries cases one after another in the same two guests: for those that leave nothing behind.
pub fn compare_in(lab: &Lab, boot: &Boot, setup: &Setup, cases: &[Case]) {
    let places = BOTH.map(|agent| Place::new(lab, agent.name()));
    let ended = at_once(|agent| in_one_guest(agent, &places[place_of(agent)], boot, setup, cases));
    let mut rows = Rows::new(lab);
    for (agent, outcomes) in BOTH.iter().zip(ended) {
        for (case, outcome) in cases.iter().zip(outcomes) {
            rows.note(case.id, case.what, *agent, expected(case, *agent), &outcome);
        }
    }
    rows.all_right();
}

/// Notes what became of each row with each agent, ours first. A row is what happens, and how it ends for them.
pub fn both(lab: &Lab, id: &str, rows: &[(&str, [&str; 2])], ended: &[Vec<Outcome>]) {
    let mut noted = Rows::new(lab);
    for (number, (what, expected)) in rows.iter().enumerate() {
        for ((agent, expected), outcomes) in BOTH.iter().zip(expected).zip(ended) {
            noted.note(id, what, *agent, expected, &outcomes[number]);
        }
    }
    noted.all_right();
}

/// Ours first.
pub const BOTH: [&dyn Agent; 2] = [&Holdstill, &QemuGa];

fn place_of(agent: &dyn Agent) -> usize {
    usize::from(agent.name() != Holdstill.name())
}

/// One thread per agent.
pub fn at_once<T: Send>(run: impl Fn(&'static dyn Agent) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let run = &run;
        let tries: Vec<_> = BOTH.iter().map(|agent| scope.spawn(move || run(*agent))).collect();
        tries.into_iter().map(|one| one.join().expect("it catches panics")).collect()
    })
}

fn in_one_guest(agent: &dyn Agent, place: &Place, boot: &Boot, setup: &Setup, cases: &[Case]) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let all = catch_unwind(AssertUnwindSafe(|| {
        let guest = Machine::boot(place, boot);
        agent.begin(&guest, setup);
        let trial = Trial { guest: &guest, agent, setup, boot, host: RefCell::default() };
        for (number, case) in cases.iter().enumerate() {
            let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(&trial)));
            let outcome = outcome.unwrap_or_else(|thrown| ends("failed").with(said(&*thrown)));
            if outcome.word != expected(case, agent) {
                eprintln!("the log of {}:\n{}", agent.name(), guest.output("agent"));
            }
            outcomes.push(outcome);
            if number + 1 < cases.len() {
                trial.tidy();
            }
        }
    }));
    let why = all.err().map_or_else(|| "a case before it".to_owned(), |thrown| said(&*thrown));
    while outcomes.len() < cases.len() {
        outcomes.push(ends("not tried").with(&why));
    }
    outcomes
}

fn expected(case: &Case, agent: &dyn Agent) -> &'static str {
    if agent.name() == "holdstill" { case.holdstill } else { case.qemu_ga }
}

fn said(thrown: &(dyn std::any::Any + Send)) -> String {
    let text = thrown.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| thrown.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

/// Where the rows wait for the end of the run; beside the facts' own directories, which go with them.
fn rows() -> PathBuf {
    disk::base().join("vm-table")
}

/// Writes rows of the table, and remembers which ended otherwise than expected.
struct Rows<'lab> {
    lab: &'lab Lab,
    wrong: Vec<String>,
}

impl Rows<'_> {
    fn new(lab: &Lab) -> Rows<'_> {
        Rows { lab, wrong: Vec::new() }
    }

    fn note(&mut self, id: &str, what: &str, agent: &dyn Agent, expected: &str, outcome: &Outcome) {
        let Outcome { word, detail } = outcome;
        let right = word == expected;
        if !right {
            let name = agent.name();
            self.wrong
                .push(format!("{id}, {what}, with {name}: expected “{expected}”, but it ended “{word}” {detail}"));
        }
        let detail: String = detail.lines().next().unwrap_or_default().chars().take(60).collect();
        let detail = if detail.is_empty() { detail } else { format!(" ({detail})") };
        let mark = if right { "" } else { " ✗" };
        let row = format!("{id}\t{what}\t{}\t{word}{detail}{mark}\n", agent.name());
        let file = fs::OpenOptions::new().append(true).create(true).open(self.lab.store("../vm-table"));
        file.and_then(|mut file| file.write_all(row.as_bytes())).expect("the lab's directory is writable");
    }

    fn all_right(self) {
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
    }
}

/// Forgets the last run's table.
pub fn begin() {
    let _ = fs::remove_file(rows());
}

/// The table of this run, as text.
pub fn printed() -> String {
    let text = fs::read_to_string(rows()).unwrap_or_default();
    let mut lines: Vec<(&str, &str, [&str; 2])> = Vec::new();
    for row in text.lines() {
        let [id, what, agent, outcome] = row.split('\t').collect::<Vec<_>>()[..] else { continue };
        let at = lines.iter().position(|(known, told, _)| (*known, *told) == (id, what)).unwrap_or_else(|| {
            lines.push((id, what, ["", ""]));
            lines.len() - 1
        });
        lines[at].2[usize::from(agent != "holdstill")] = outcome;
    }
    if lines.is_empty() {
        return String::new();
    }
    lines.sort_by_key(|(id, _, _)| {
        id.trim_start_matches('T').trim_end_matches(char::is_alphabetic).parse().unwrap_or(0)
    });
    lines.insert(0, ("CASE", "WHAT HAPPENS", ["HOLDSTILL", "QEMU-GA"]));
    let widest = |cells: &mut dyn Iterator<Item = &str>| cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
    let a = widest(&mut lines.iter().map(|line| line.0));
    let b = widest(&mut lines.iter().map(|line| line.1));
    let c = widest(&mut lines.iter().map(|line| line.2[0]));
    lines.iter().map(|(id, what, [ours, theirs])| format!("{id:a$}  {what:b$}  {ours:c$}  {theirs}\n")).collect()
}
