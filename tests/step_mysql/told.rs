//! What is told of a server besides.

use super::*;

#[tokio::test]
async fn logs_that_would_stop_every_statement_are_said() {
    with(Release::Sid, &["general-log=ON", "log-output=TABLE", "disable-log-bin"], async |server| {
        let mut session = connect(&server.target()).await;
        assert_eq!(codes(&session.remarks()), ["LOG_TABLES", "NO_BINARY_LOG"]);
        assert_eq!(session.log_places().len(), 1, "whether its disk is frozen decides whether that is said");
        hold(&mut session).await;
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!((proof.database.claim(), proof.problem), (Claim::Bounded, None));
        let mut session = connect(&asking(&server, Strategy::GlobalLock)).await;
        hold(&mut session).await;
        let proof = session.prove_and_release(LIMIT).await;
        assert_eq!((proof.database.claim(), proof.problem), (Claim::Exact, None), "the server shows its locks");
    })
    .await;
}

#[tokio::test]
async fn every_place_of_its_data_is_named() {
    with(Release::Sid, &[], async |server| {
        let names = ["logs", "undo", "dw", "tables"];
        let made = names.map(|name| directory(&server.place, name).display().to_string());
        let [logs, undo, dw, tables] = &made;
        let known = format!("innodb-directories={tables};{undo}");
        let (log, double) = (format!("log-bin={logs}/binlog"), format!("innodb-doublewrite-dir={dw}"));
        let server = server.restart(&[&log, &double, &known]);
        let mut dba = server.with_table().await;
        for sql in [
            format!("CREATE TABLE app.far (i int) DATA DIRECTORY '{tables}'"),
            format!("CREATE TABLESPACE shared ADD DATAFILE '{tables}/shared.ibd'"),
            format!("CREATE UNDO TABLESPACE more ADD DATAFILE '{undo}/more.ibu'"),
        ] {
            run(&mut dba, &sql).await;
        }
        let session = connect(&server.target()).await;
        let within = |name: &str| server.place.path(name);
        let expected =
            [within("data"), within("dw"), within("logs"), within("tables"), within("tables/app"), within("undo")];
        assert_eq!(paths(&session), expected);
        let purposes: Vec<&str> = session.places().into_iter().map(|place| place.purpose).collect();
        assert_eq!(purposes, ["data", "doublewrite", "binlog", "tablespace", "tablespace", "undo"]);
    })
    .await;
}

#[tokio::test]
async fn a_replicas_executed_position_is_told_and_that_it_stands_still() {
    const TABLES: [&str; 2] = ["loose-master-info-repository=TABLE", "loose-relay-log-info-repository=TABLE"];
    for release in Release::ALL {
        with(release, &TABLES, async |server| {
            let mut dba = server.with_table().await;
            let old = "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_LOG_FILE='b.000007', MASTER_LOG_POS=157, \
                       MASTER_DELAY=60 FOR CHANNEL 'east'";
            let new = "CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_LOG_FILE='b.000007', \
                       SOURCE_LOG_POS=157, SOURCE_DELAY=60 FOR CHANNEL 'east'";
            if release == Release::Bionic {
                let version = text(&mut dba, "SELECT VERSION()").await;
                assert!(version.starts_with("5.7"), "{version}");
            }
            run(&mut dba, if release == Release::Bionic { old } else { new }).await;
            let mut session = connect(&server.target()).await;
            let said = session.remarks();
            let said = codes(&said);
            assert!(said.contains(&"REPLICA_DELAYED") && said.contains(&"REPLICA_STOPPED"), "{release:?} {said:?}");
            hold(&mut session).await;
            let proof = session.prove_and_release(LIMIT).await;
            assert_eq!(at(&proof.database.start, "replica.east.executed"), "b.000007:157", "{release:?}");
            assert_eq!(proof.database.claim(), Claim::Bounded);
        })
        .await;
    }
}

#[tokio::test]
async fn a_member_of_a_replication_group_is_not_locked() {
    let group = "11111111-2222-3333-4444-555555555555";
    let name = format!("loose-group-replication-group-name={group}");
    let settings = [
        "gtid-mode=ON",
        "enforce-gtid-consistency=ON",
        "plugin-load-add=group_replication.so",
        name.as_str(),
        "loose-group-replication-start-on-boot=OFF",
        "loose-group-replication-bootstrap-group=ON",
    ];
    with(Release::Sid, &settings, async |server| {
        let session = connect(&server.target()).await;
        assert_eq!(session.describe().strategy, "instance-lock", "it has not joined");
        let mut dba = server.with_table().await;
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("bound").port();
        run(&mut dba, &format!("SET GLOBAL group_replication_local_address = '127.0.0.1:{port}'")).await;
        run(&mut dba, "START GROUP_REPLICATION").await;
        let mut session = connect(&server.target()).await;
        assert_eq!(codes(&session.remarks()), ["CLUSTER_NODE"]);
        hold(&mut session).await;
        let held = session.describe();
        assert_eq!((held.strategy.as_str(), held.claim()), ("freeze-only", Claim::Bounded));
        assert!(held.strategy_reason.contains("replication group"), "{}", held.strategy_reason);
        run(&mut dba, "CREATE TABLE app.member (i int PRIMARY KEY)").await; // nobody waits, not even DDL
        assert_eq!(session.prove_and_release(LIMIT).await.database.claim(), Claim::Bounded);
        let asked = connect(&asking(&server, Strategy::GlobalLock)).await;
        assert_eq!(asked.describe().claim(), Claim::Exact, "only if somebody asks for just that");
    })
    .await;
}
