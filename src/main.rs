//! holdstill: parse, dispatch, turn the result into text and an exit code; nothing else.

use std::process::ExitCode;

use holdstill::{
    cli::{self, Cli, Usage, Verb},
    client::{self, Answer},
    error::Failure,
    run,
};

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(Cli { global, verb }) => ExitCode::from(dispatch(&global, verb)),
        Err(Usage::Shown(text)) => {
            print!("{text}");
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
        Verb::Warden(args) => own::warden(&args),
        Verb::Serve(args) => own::serve(&args),
        Verb::Rescue(args) => own::rescue(&args),
        Verb::Gate(args) => run::gate::gate(&args),
        Verb::Config(args) => told(client::config(args.config.as_deref()), global.json),
        Verb::Receipt(args) => told(own::receipt(&args), global.json),
        Verb::Verify(args) => told(own::verify(&args), global.json),
        Verb::Hooks(args) => told(hooks(&args), global.json),
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

/// LEAD: the call sites of rooms that are still being written. Each becomes one call into its room, and this module goes.
mod own {
    use super::{Answer, Failure, cli};

    pub fn warden(_args: &cli::Warden) -> u8 {
        todo!("warden: args.run, args.fd, args.config; before any runtime, single-threaded")
    }

    pub fn serve(_args: &cli::ConfigFile) -> u8 {
        todo!("daemon::serve(client::settings(args.config)); fork the warden before the runtime starts")
    }

    pub fn rescue(_args: &cli::Rescue) -> u8 {
        todo!("rescue::run(args.run or paths.run of client::settings(args.config))")
    }

    pub fn receipt(_args: &cli::Receipt) -> Result<Answer, Failure> {
        todo!("hold::receipt, args.dir")
    }

    pub fn verify(_args: &cli::Verify) -> Result<Answer, Failure> {
        todo!("hold::receipt, args.dirs, json::record(args.record)")
    }
}
