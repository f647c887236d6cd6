//! holdstill: parse, dispatch, turn the result into text and an exit code; nothing else.

use std::{collections::BTreeMap, io::Write, process::ExitCode};

use holdstill::{
    cli::{self, Cli, Usage, Verb},
    client::{self, Answer, testimony},
    daemon,
    error::{Exit, Failure},
    rescue, run, telemetry, warden,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|verb| verb == warden::VERB) {
        // before anything else: it stays as small as a process can be
        return warden::run::main(arguments);
    }
    match cli::parse(std::env::args_os(), |name| std::env::var_os(name)) {
        Ok(Cli { global, verb }) => ExitCode::from(dispatch(&global, verb)),
        Err(Usage::Shown(text)) => {
            // whoever read the beginning only (`| head`) has what they wanted
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(Usage::Wrong { failure, json, exit }) => {
            client::print_failure(&failure, json);
            ExitCode::from(exit)
        }
    }
}

fn dispatch(global: &cli::Global, verb: Verb) -> u8 {
    match verb {
        // these bring their own processes and runtimes, or none at all
        Verb::Serve(args) => serve(&args),
        Verb::Rescue(args) => told(rescue(&args), global.json),
        Verb::Gate(args) => run::gate::gate(&args),
        Verb::Config(args) => told(client::config(args.config.as_deref()), global.json),
        Verb::Receipt(args) => told(testimony::receipt(&args), global.json),
        Verb::Verify(args) => told(testimony::verify(&args), global.json),
        Verb::Hooks(args) => told(hooks(&args), global.json),
        Verb::Adapter(args) => asking(client::adapter::answer(global, args)),
        Verb::Run(args) => asking(run::run(&client::daemon(global), &args)),
        Verb::Check(args) => told(asking(client::check(&client::daemon(global), &args)), global.json),
        Verb::Freeze(spec) => told(asking(client::freeze(&client::daemon(global), &spec)), global.json),
        Verb::Thaw(args) => told(asking(client::thaw(&client::daemon(global), &args)), global.json),
        Verb::Extend(args) => told(asking(client::extend(&client::daemon(global), &args)), global.json),
        Verb::Rehearse(spec) => told(asking(client::rehearse(&client::daemon(global), &spec)), global.json),
        Verb::Status => told(asking(client::status(&client::daemon(global))), global.json),
        Verb::Watch => told(asking(client::watch(&client::daemon(global), global.json)), global.json),
        Verb::History(args) => told(asking(client::history(&client::daemon(global), &args)), global.json),
    }
}

fn serve(args: &cli::ConfigFile) -> u8 {
    let served = client::settings(args.config.as_deref()).map_err(Failure::from).and_then(|loaded| {
        telemetry::init().map_err(|error| Failure::io("start logging", &std::io::Error::other(error)))?;
        Ok(daemon::serve(loaded.settings, &loaded.notes, args.config.clone())?)
    });
    match served {
        Ok(()) => Exit::Done.code(),
        Err(failure) => told(Err(failure), false),
    }
}

fn rescue(args: &cli::Rescue) -> Result<Answer, Failure> {
    let run = match &args.run {
        Some(run) => run.clone(),
        None => client::settings(args.config.config.as_deref())?.settings.paths.run,
    };
    let rescued = rescue::run(&run, &BTreeMap::new())?;
    Ok(Answer {
        document: rescued.to_json(),
        table: String::new(),
        sentence: rescued.to_string(),
        exit: if rescued.problems.is_empty() { Exit::Done } else { Exit::Failed },
    })
}

fn hooks(args: &cli::Hooks) -> Result<Answer, Failure> {
    let loaded = client::settings(args.config.config.as_deref())?;
    asking(client::hooks::hooks(&loaded, args))
}

/// One thread is enough to ask.
fn asking<T>(ask: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime needs an epoll and a pipe").block_on(ask)
}

fn told(answer: Result<Answer, Failure>, json: bool) -> u8 {
    match answer {
        Ok(answer) => {
            answer.print(json);
            answer.exit.code()
        }
        Err(failure) => {
            client::print_failure(&failure, json);
            failure.exit.code()
        }
    }
}
