//! Clients of bad faith, and clients that vanish: the machine goes on, or waits for a better one.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::guest;
use crate::{LIMIT, Machine};

/// A packet around `body`, with its checksum.
fn packet(body: &[u8]) -> Vec<u8> {
    let sum = body.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    [b"$", body, format!("#{sum:02x}").as_bytes()].concat()
}

/// The reply to `body`, without its frame; none if the connection ends.
fn ask(stream: &mut UnixStream, body: &[u8]) -> Option<String> {
    stream.write_all(&packet(body)).ok()?;
    let mut reply = Vec::new();
    let mut byte = [0];
    while !reply.contains(&b'$') || reply.iter().rev().nth(2) != Some(&b'#') {
        match stream.read(&mut byte) {
            Ok(1) => reply.push(byte[0]),
            _ => return None,
        }
    }
    let text = String::from_utf8_lossy(&reply).into_owned();
    let (_, body) = text.split_once('$')?;
    Some(unfolded(body.split('#').next()?))
}

/// `a*X` stands for as many more `a` as X's code is above 29.
fn unfolded(reply: &str) -> String {
    let mut text = String::new();
    let mut rest = reply.chars();
    while let Some(letter) = rest.next() {
        match letter {
            '*' => {
                let last = text.chars().last().unwrap_or_default();
                let more = rest.next().map_or(0, |count| u32::from(count).saturating_sub(29));
                text.extend(std::iter::repeat_n(last, more as usize));
            }
            _ => text.push(letter),
        }
    }
    text
}

/// Connects, whenever the last client's leaving has been noticed, and asks why the machine stands.
fn is_served(machine: &Machine) -> bool {
    let started = Instant::now();
    while started.elapsed() < LIMIT {
        if ask(&mut machine.connect(), b"?").is_some_and(|reply| reply.starts_with("T05")) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

fn counting(name: &str, words: &[&str]) -> Machine {
    let rom = guest::rom(&format!("gdb-{name}.rom"));
    Machine::start(name, "jit", &[&["--bios", rom.to_str().unwrap()], words].concat())
}

#[test]
fn packets_of_bad_faith_are_answered_or_shown_out() {
    let mut machine = counting("hostile", &["--paused"]);
    #[rustfmt::skip]
    let bodies: &[&[u8]] = &[
        b"", b"m", b"m0", b"m0,ffffffffffffffff", b"mffffffffffffffff,2000",
        b"m0,10000000000000000",
        b"M0,ffffffff:00", b"Mffffffffffffffff,4:00112233", b"X0,10:", b"G", b"G00", b"Gzz", b"p",
        b"pffffffff", b"P0", b"P0=", b"P0=ff", b"P10=ffffffffffffffff", b"Pffffff=00",
        b"Z0,", b"Z0,ffffffffffffffff,1", b"Z2,ffffffffffffffff,ffffffffffffffff", b"Z9,0,1",
        b"Z2,0,0", b"z0,0,1", b"z4,0,8", b"Z0,0,1;X4,22222222", b"vCont", b"vCont;", b"vCont;x",
        b"vCont;s:ff", b"vCont;s:0", b"vCont;r5,1:1;c:99", b"vCont;t:1", b"Hg99", b"Hg-1", b"Hc0",
        b"T99", b"qXfer:features:read:target.xml:ffffffffffffffff,ffffffffffffffff",
        b"qXfer:features:read:/etc/passwd:0,fff", b"qXfer:memory-map:read::0,fff",
        b"vFile:open:2f6574632f706173737764,0,0", b"vRun;2f62696e2f7368", b"vAttach;1", b"qRcmd,",
        b"qRcmd,zz", b"qRcmd,782f3939393939393939393978", b"qRcmd,ff", b"qCRC:0,ffffffff",
        b"qSearch:memory:0;ffffffffffffffff;00", b"bs", b"bc", b"R00", b"!", b"QNonStop:1",
        b"QStartNoAckMode", b"qSupported:multiprocess+;xmlRegisters=i386", b"D;ff",
    ];
    for body in bodies {
        let mut client = machine.connect();
        let _ = client.write_all(&packet(body));
        // Whatever comes back, what follows finds the server there.
        drop(client);
        assert!(machine.is_running(), "{}", String::from_utf8_lossy(body));
    }
    assert!(is_served(&machine));
    for bytes in [&b"$m0,40#00"[..], b"$$$$", b"\x03\x03\x03+-+-", b"}}}#", &[b'$'; 100_000]] {
        let _ = machine.connect().write_all(bytes);
    }
    assert!(is_served(&machine) && machine.is_running());
}

#[test]
fn memory_of_the_host_is_nowhere_to_be_read() {
    let machine = counting("reads", &["--paused"]);
    let mut client = machine.connect();
    // Behind RAM, at devices, at the local APIC, where the host has its own.
    for address in [0x100_0000u64, 0xfee0_0000, 0xfec0_0000, 0x5555_5555_5000, 0x7fff_ffff_f000] {
        let reply = ask(&mut client, format!("m{address:x},8").as_bytes());
        // Without paging an address has 32 bits, as on hardware.
        let is_folded = address >> 32 != 0;
        assert!(is_folded || reply.as_deref() == Some("E0e"), "{address:#x}: {reply:?}");
    }
}

#[test]
fn random_packets_leave_the_machine_as_it_is() {
    let mut machine = counting("random", &["--paused"]);
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let heads: &[&[u8]] = &[
        b"m",
        b"M",
        b"X",
        b"p",
        b"P",
        b"g",
        b"G",
        b"Z0,",
        b"Z2,",
        b"z1,",
        b"vCont;",
        b"H",
        b"T",
        b"qXfer:features:read:",
        b"qRcmd,",
        b"qSupported:",
        b"v",
        b"q",
        b"Q",
        b"?",
        b"s",
        b"C",
    ];
    let letters = b"0123456789abcdef,;:=-+#$}*rcst/xip \xff\x00";
    for _ in 0..60 {
        let mut client = machine.connect();
        for _ in 0..20 {
            let mut body = heads[random(heads.len() as u64) as usize].to_vec();
            for _ in 0..random(30) {
                body.push(letters[random(letters.len() as u64) as usize]);
            }
            if client.write_all(&packet(&body)).is_err() {
                break;
            }
        }
    }
    assert!(is_served(&machine) && machine.is_running());
}

#[test]
fn a_client_that_vanishes_leaves_the_guest_as_it_was_or_as_it_asked() {
    let machine = counting("vanish", &[]);
    let counter = |client: &mut UnixStream| {
        let reply = ask(client, b"m600,4").unwrap();
        let number = u32::from_str_radix(&reply, 16).unwrap_or_else(|_| panic!("{reply}"));
        number.swap_bytes()
    };
    let connect = || {
        assert!(is_served(&machine));
        loop {
            let mut client = machine.connect();
            if ask(&mut client, b"?").is_some() {
                return client;
            }
        }
    };
    // Stopped, and so it stays.
    let mut client = connect();
    let before = counter(&mut client);
    drop(client);
    std::thread::sleep(Duration::from_millis(100));
    let mut client = connect();
    assert_eq!(counter(&mut client), before);
    // `monitor vanish continue`.
    let line: String = b"vanish continue".iter().map(|byte| format!("{byte:02x}")).collect();
    let said = ask(&mut client, format!("qRcmd,{line}").as_bytes()).unwrap();
    assert!(said.starts_with('O'), "{said}");
    drop(client);
    std::thread::sleep(Duration::from_millis(200));
    let mut client = connect();
    let after = counter(&mut client);
    assert!(after > before, "{before} {after}");
    // Running, with a breakpoint that goes with the client.
    assert_eq!(ask(&mut client, b"Z0,f0500,1").as_deref(), Some("OK"));
    client.write_all(&packet(b"vCont;c")).unwrap();
    drop(client);
    let mut client = connect();
    drop(client);
    client = connect();
    assert!(counter(&mut client) >= after);
}

#[test]
fn a_second_client_is_sent_away() {
    let machine = counting("second", &["--paused"]);
    let mut first = machine.connect();
    assert!(ask(&mut first, b"?").is_some());
    assert_eq!(ask(&mut machine.connect(), b"?"), None);
    assert!(ask(&mut first, b"?").is_some());
}
