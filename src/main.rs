//! holdstill: parse, dispatch, turn the result into text and an exit code; nothing else.

use std::process::ExitCode;

use holdstill::{
    cli::{self, Cli, Verb},
    client::{self, Answer},
    daemon,
    error::Failure,
    rescue, telemetry,
    warden,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|verb| verb == "warden") {
        return warden::run::main(arguments);
    }
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(cli::Usage::Shown(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(cli::Usage::Wrong { failure, json, exit }) => {
            client::print_failure(&failure, json);
            return ExitCode::from(exit);
        }
    };
    let json = cli.global.json;
    match act(cli) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(answer)) => {
            answer.print(json);
            ExitCode::from(answer.exit.code())
        }
        Err(failure) => {
            client::print_failure(&failure, json);
            ExitCode::from(failure.exit.code())
        }
    }
}

fn act(cli: Cli) -> Result<Option<Answer>, Failure> {
    let ask = || client::daemon(&cli.global);
    match &cli.verb {
        Verb::Serve(args) => {
            let loaded = client::settings(args.config.as_deref())?;
            let _ = telemetry::init();
            daemon::serve(loaded.settings, &loaded.notes, args.config.clone())?;
            Ok(None)
        }
        Verb::Check(args) => asking(client::check(&ask(), args)),
        Verb::Freeze(args) => asking(client::freeze(&ask(), args)),
        Verb::Thaw(args) => asking(client::thaw(&ask(), args)),
        Verb::Extend(args) => asking(client::extend(&ask(), args)),
        Verb::Rehearse(args) => asking(client::rehearse(&ask(), args)),
        Verb::Status => asking(client::status(&ask())),
        Verb::Watch => asking(client::watch(&ask(), cli.global.json)),
        Verb::History(args) => asking(client::history(&ask(), args)),
        Verb::Config(args) => client::config(args.config.as_deref()).map(Some),
        Verb::Receipt(args) => client::testimony::receipt(args).map(Some),
        Verb::Verify(args) => client::testimony::verify(args).map(Some),
        Verb::Run(_) | Verb::Hooks(_) | Verb::Rescue(_) | Verb::Warden(_) | Verb::Gate(_) => todo!(),
    }
}

/// A verb that asks the daemon: one thread is enough for one question.
fn asking(verb: impl Future<Output = Result<Answer, Failure>>) -> Result<Option<Answer>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("start the runtime", &error))?;
    runtime.block_on(verb).map(Some)
}
