//! Runs one input through one body: `replay BODY FILE`.

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(path)) = (arguments.next(), arguments.next()) else {
        panic!("usage: replay BODY FILE");
    };
    let body = cowl_fuzz_bodies::BODIES.iter().find(|(known, _)| *known == name);
    let (_, body) = body.expect("one of the bodies");
    body(&std::fs::read(path).expect("a file"));
}
