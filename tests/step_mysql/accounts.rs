//! What an account must be allowed, and what is said where it is not.

use super::*;

/// Asked to hold as an account of its own, which tests make and give what they want.
fn keeper(server: &Server, strategy: Strategy) -> Target {
    Target {
        user: Some("keeper".to_owned()),
        password_file: Some(password_file(&server.place, "right\n")),
        ..asking(server, strategy)
    }
}

#[tokio::test]
async fn an_account_that_sees_no_table_has_not_seen_that_there_is_none() {
    with(Release::Sid, &[], async |server| {
        let mut application = server.with_table().await;
        run(&mut application, "CREATE TABLE app.m (i int) ENGINE=MyISAM").await;
        run(&mut application, "CREATE USER keeper@localhost IDENTIFIED BY 'right'").await;
        run(&mut application, "GRANT BACKUP_ADMIN, RELOAD, PROCESS, REPLICATION CLIENT ON *.* TO keeper@localhost")
            .await;
        let small = keeper(&server, Strategy::Auto);
        let mut session = connect(&small).await;
        let mut all = Vec::new();
        let unknown = remark(&session, "TABLES_UNKNOWN", &mut all);
        assert_eq!(unknown.hint, "GRANT REFERENCES ON *.* TO 'keeper'@'localhost'");
        let hints: Vec<String> =
            session.remarks().into_iter().filter(|r| r.code == "LESS_EVIDENCE").map(|r| r.hint).collect();
        assert_eq!(hints.len(), 2, "{hints:?}");
        hold(&mut session).await;
        assert_eq!(session.describe().strategy, "global-lock");
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!((proof.database.claim(), proof.problem), (Claim::Exact, None), "by the binary log alone");
        // Pasting the hints is all it takes.
        for hint in hints.iter().chain([&unknown.hint]) {
            run(&mut application, hint).await;
        }
        run(&mut application, "GRANT SELECT, LOCK TABLES, XA_RECOVER_ADMIN ON *.* TO keeper@localhost").await;
        let mut session = connect(&small).await;
        hold(&mut session).await;
        assert_eq!((session.describe().strategy.as_str(), codes(&session.remarks())), ("table-locks", Vec::new()));
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Bounded);
    })
    .await;
}

#[tokio::test]
async fn tables_whose_files_were_seen_count_even_if_the_server_tells_of_none() {
    with(Release::Sid, &[], async |server| {
        drop(server.with_table().await);
        let mut session = connect(&server.target()).await;
        assert_eq!(session.describe().strategy, "instance-lock");
        session.doubt_tables();
        hold(&mut session).await;
        let held = session.describe();
        assert_eq!((held.strategy.as_str(), held.claim()), ("global-lock", Claim::Exact));
        let mut all = Vec::new();
        assert!(remark(&session, "TABLES_UNKNOWN", &mut all).message.contains("files of such tables"));
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Exact);
    })
    .await;
}

#[tokio::test]
async fn the_least_account_is_enough_for_every_way_to_hold() {
    for release in Release::ALL {
        let settings = ["log-bin=binlog", "sync-binlog=1", "gtid-mode=ON", "enforce-gtid-consistency=ON"];
        with(release, &settings, async |server| {
            let mut dba = server.with_table().await;
            run(&mut dba, "CREATE USER keeper@localhost IDENTIFIED BY 'right'").await;
            let old =
                ["RELOAD, PROCESS, REPLICATION CLIENT, REFERENCES ON *.*", "SELECT ON performance_schema.threads"];
            let new = [
                "BACKUP_ADMIN, XA_RECOVER_ADMIN ON *.*",
                "SELECT ON performance_schema.log_status",
                "SELECT ON performance_schema.metadata_locks",
            ];
            let grants = old.iter().chain(if release.instance_lock() { &new[..] } else { &new[2..] });
            for grant in grants {
                run(&mut dba, &format!("GRANT {grant} TO keeper@localhost")).await;
            }
            for (strategy, claim) in [
                (Strategy::Auto, Claim::Bounded),
                (Strategy::GlobalLock, Claim::Exact),
                (Strategy::FreezeOnly, Claim::Bounded),
            ] {
                let mut session = connect(&keeper(&server, strategy)).await;
                hold(&mut session).await;
                assert_eq!(codes(&session.remarks()), [""; 0], "{release:?} {strategy:?}");
                let proof = session.prove_and_release(LIMIT).await;
                assert_eq!((proof.database.claim(), proof.problem), (claim, None), "{release:?} {strategy:?}");
            }
            // Locking tables one by one takes the right to do so, and to read them.
            run(&mut dba, "CREATE TABLE app.m (i int) ENGINE=MyISAM").await;
            run(&mut dba, "GRANT LOCK TABLES, SELECT ON app.* TO keeper@localhost").await;
            let mut session = connect(&keeper(&server, Strategy::TableLocks)).await;
            hold(&mut session).await;
            assert_eq!(session.describe().strategy, "table-locks", "{release:?}");
            let proof = session.prove_and_release(LIMIT).await;
            let (claim, said) = (proof.database.claim(), proof.problem.map(|problem| problem.hint));
            if release.instance_lock() {
                assert_eq!((claim, said), (Claim::Bounded, None), "{release:?}");
            } else {
                // 5.7 does not record locks; what it takes to show them otherwise is said.
                assert_eq!(claim, Claim::Recoverable);
                for grant in said.expect("it is said").split("; ") {
                    run(&mut dba, grant).await;
                }
                let mut session = connect(&keeper(&server, Strategy::TableLocks)).await;
                hold(&mut session).await;
                let proof = session.prove_and_release(LIMIT).await;
                assert_eq!((proof.database.claim(), proof.problem), (Claim::Bounded, None));
            }
        })
        .await;
    }
}

#[tokio::test]
async fn what_may_not_be_locked_alone_is_locked_with_all_others_and_the_cure_is_said() {
    with(Release::Sid, &[], async |server| {
        let mut application = server.with_table().await;
        run(&mut application, "CREATE TABLE app.m (i int) ENGINE=MyISAM").await;
        run(&mut application, "CREATE USER keeper@localhost IDENTIFIED BY 'right'").await;
        run(&mut application, "GRANT BACKUP_ADMIN, RELOAD, PROCESS, REFERENCES ON *.* TO keeper@localhost").await;
        let small = keeper(&server, Strategy::Auto);
        let mut session = connect(&small).await;
        let mut all = Vec::new();
        let grant = remark(&session, "TABLES_NOT_LOCKABLE", &mut all).hint.clone();
        hold(&mut session).await;
        assert_eq!(session.describe().strategy, "global-lock");
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Exact);
        let asked = Target { strategy: Strategy::TableLocks, ..small };
        assert_eq!(refused(&asked).await.hint, grant);
        run(&mut application, &grant).await;
        let mut session = connect(&asked).await;
        hold(&mut session).await;
        assert_eq!(session.describe().strategy, "table-locks");
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Bounded);
    })
    .await;
}

#[tokio::test]
async fn a_lock_that_the_server_does_not_record_is_shown_by_what_its_holder_is_refused() {
    with(Release::Bionic, &[], async |server| {
        let mut application = server.with_table().await;
        run(&mut application, "CREATE TABLE app.m (i int) ENGINE=MyISAM").await;
        for (strategy, claim) in [(Strategy::Auto, Claim::Exact), (Strategy::TableLocks, Claim::Bounded)] {
            let mut session = connect(&asking(&server, strategy)).await;
            hold(&mut session).await;
            let proof = session.prove_and_release(LIMIT).await;
            assert_eq!((proof.database.claim(), proof.problem), (claim, None), "{strategy:?}");
        }
        run(&mut application, "CREATE USER keeper@localhost IDENTIFIED BY 'right'").await;
        run(&mut application, "GRANT RELOAD, PROCESS, REFERENCES ON *.* TO keeper@localhost").await;
        let small = keeper(&server, Strategy::Auto);
        let mut session = connect(&small).await;
        hold(&mut session).await;
        assert_eq!(session.describe().claim(), Claim::Recoverable, "it is known before the freeze");
        let proof = session.prove_and_release(LIMIT).await;
        let problem = proof.problem.expect("it is said");
        assert_eq!((proof.database.claim(), problem.code.as_str()), (Claim::Recoverable, "LOCK_NOT_SHOWN"));
        run(&mut application, "ALTER TABLE app.m ENGINE=InnoDB").await;
        let asked = Target { strategy: Strategy::GlobalLock, ..small.clone() };
        let mut session = connect(&asked).await;
        hold(&mut session).await;
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!(proof.database.claim(), Claim::Bounded, "what was flushed needs no lock");
        run(&mut application, "ALTER TABLE app.m ENGINE=MyISAM").await;
        for grant in problem.hint.split("; ") {
            run(&mut application, grant).await;
        }
        let mut session = connect(&small).await;
        hold(&mut session).await;
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!((proof.database.claim(), proof.problem), (Claim::Exact, None));
    })
    .await;
}

#[tokio::test]
async fn when_all_connections_are_taken_the_cure_is_named() {
    with(Release::Sid, &["max-connections=3"], async |server| {
        let mut clients = vec![server.with_table().await, server.client().await];
        let mut session = connect(&asking(&server, Strategy::GlobalLock)).await;
        clients.push(server.client().await); // the one more that is kept for administrators
        session.soften(LIMIT).await.expect("the second connection is nice to have");
        let mut all = Vec::new();
        assert!(remark(&session, "NO_SECOND_SESSION", &mut all).hint.contains("max_connections"));
        let error = refused(&server.target()).await;
        assert!(error.to_string().contains("Too many connections (1040)"), "{error}");
        assert!(error.hint.contains("admin_port"), "{}", error.hint);
        session.hold("h1", LIMIT).await.expect("what is connected is held");
        session.barrier("h1", LIMIT).await.expect("flushed");
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Exact);
    })
    .await;
}

#[tokio::test]
async fn accounts_of_every_kind_are_let_in_and_the_others_are_told_how() {
    with(Release::Sid, &["plugin-load-add=auth_socket.so"], async |server| {
        let mut dba = server.with_table().await;
        run(&mut dba, "CREATE USER keeper@localhost IDENTIFIED WITH auth_socket AS 'root'").await;
        let keeper = Target { user: Some("keeper".to_owned()), ..server.target() };
        let error = refused(&keeper).await;
        assert_eq!(error.hint, "GRANT BACKUP_ADMIN ON *.* TO 'keeper'@'localhost'");
        run(&mut dba, &error.hint).await;
        let error = refused(&keeper).await;
        assert_eq!(error.hint, "GRANT RELOAD ON *.* TO 'keeper'@'localhost'");
        run(&mut dba, &error.hint).await;
        connect(&keeper).await.release(LIMIT).await.expect("released");

        run(&mut dba, "CREATE USER word@localhost IDENTIFIED WITH caching_sha2_password BY 'right'").await;
        run(&mut dba, "GRANT BACKUP_ADMIN, RELOAD ON *.* TO word@localhost").await;
        let right = Some(password_file(&server.place, "right\n"));
        for target in [server.target(), on_tcp(Engine::Mysql, server.port)] {
            let target = Target { user: Some("word".to_owned()), password_file: right.clone(), ..target };
            connect(&target).await.release(LIMIT).await.expect("released");
        }
        password_file(&server.place, "wrong\n");
        let word = Target { user: Some("word".to_owned()), password_file: right, ..server.target() };
        let error = refused(&word).await;
        assert!(error.to_string().contains("Access denied for user 'word'@'localhost'"), "{error}");
        assert!(error.hint.contains("`password_file`") && !error.hint.contains("wrong"), "{}", error.hint);
        run(&mut dba, "ALTER USER word@localhost ACCOUNT LOCK").await;
        password_file(&server.place, "right\n");
        assert_eq!(refused(&word).await.hint, "ALTER USER 'word'@'localhost' ACCOUNT UNLOCK");
        run(&mut dba, "ALTER USER word@localhost ACCOUNT UNLOCK PASSWORD EXPIRE").await;
        let error = refused(&word).await;
        assert!(error.hint.contains("PASSWORD EXPIRE NEVER"), "{error}: {}", error.hint);
        run(&mut dba, "CREATE USER sha@localhost IDENTIFIED WITH sha256_password BY 'right'").await;
        let sha = Target { user: Some("sha".to_owned()), ..word };
        let error = refused(&sha).await;
        assert!(error.to_string().contains("sha256_password"), "{error}");
        assert!(error.hint.contains("caching_sha2_password"), "{}", error.hint);
    })
    .await;
}
