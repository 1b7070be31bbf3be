//! Sockets that a service manager opened before the server began.

use std::process::Command;

use cowl_nbd::protocol::request::Headers;
use cowl_nbd::protocol::wire::command;
use cowl_nbd::{Listener, ServerOptions};

use crate::bare_client::{BareClient, request};
use crate::serving::{Serving, client, whole};
use cowl_testkit::are_installed;

/// Opens a unix and a TCP socket as descriptors 3 and 4, and becomes the program to be served by.
const MANAGER: &str = "\
import os, socket, sys
unix = socket.socket(socket.AF_UNIX); unix.bind(sys.argv[1]); unix.listen()
tcp = socket.create_server(('127.0.0.1', 0))
spare = [os.dup(unix.fileno()), os.dup(tcp.fileno())]
os.dup2(spare[0], 3); os.dup2(spare[1], 4)
os.environ.update(LISTEN_FDS='2', LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], [sys.argv[2], '--exact', 'inherited::the_service', '--ignored'])
";

#[test]
fn sockets_of_a_service_manager_are_taken_over() {
    if !are_installed(&["python3"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    client(folder.path(), "qemu-img", &["create", "-f", "qcow2", "disk.qcow2", "1M"]);
    let mut manager = Command::new("timeout");
    manager.args(["60", "/usr/bin/python3", "-c", MANAGER]);
    manager.arg(folder.path().join("socket")).arg(std::env::current_exe().unwrap());
    manager.env("COWL_TEST_FOLDER", folder.path());
    let said = cowl_testkit::Output::of(&mut manager).expect_success("the service");
    assert!(said.stdout.contains("1 passed"), "{said:?}");
}

#[test]
#[ignore = "runs as a child of the test above"]
fn the_service() {
    let folder = tempfile::tempdir().unwrap();
    let given = std::path::PathBuf::from(std::env::var_os("COWL_TEST_FOLDER").unwrap());
    std::fs::copy(given.join("disk.qcow2"), folder.path().join("disk.qcow2")).unwrap();
    let listeners = Listener::inherited().unwrap();
    assert_eq!(listeners.len(), 2);
    let serving =
        Serving::listening(folder, listeners, ServerOptions::standard(), |disk| vec![whole(disk)]);
    let mut client = BareClient::go(&given.join("socket"), Headers::Simple, &[]);
    assert_eq!(client.error_of(request(command::WRITE, 0, 1), b"x"), 0);
    serving.finish();
}
