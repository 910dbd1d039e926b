//! Clients of bad faith, and clients that vanish: the machine goes on, or waits for a better one.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::packets::{ask, packet, reply};
use crate::scripts::counting;
use crate::{LIMIT, Machine};

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

#[test]
fn packets_of_bad_faith_are_answered_or_shown_out() {
    let mut machine = counting("hostile", "jit", &["--paused"]);
    #[rustfmt::skip]
    let bodies: &[&[u8]] = &[
        b"", b"m", b"m0", b"m0,ffffffffffffffff", b"mffffffffffffffff,2000",
        b"m0,10000000000000000",
        b"M0,ffffffff:00", b"Mffffffffffffffff,4:00112233", b"X0,10:", b"G", b"G00", b"Gzz", b"p",
        b"pffffffff", b"P0", b"P0=", b"P0=ff", b"P10=ffffffffffffffff", b"Pffffff=00",
        b"Z0,", b"Z0,ffffffffffffffff,1", b"Z2,ffffffffffffffff,ffffffffffffffff", b"Z9,0,1",
        b"Z2,0,0", b"Z0,f0400,1;X3,220127", b"Z0,f0400,1;X3,210000", b"Z0,0,1;X1,27",
        b"Z0,f0400,1;Xffffffff,22", b"Z1,f0400,1;X3,26ffff;cmds:0,X1,27", b"z0,0,1",
        b"z4,0,8", b"Z0,0,1;X4,22222222", b"vCont", b"vCont;", b"vCont;x",
        b"vCont;s:ff", b"vCont;s:0", b"vCont;r5,1:1;c:99", b"vCont;t:1", b"Hg99", b"Hg-1", b"Hc0",
        b"T99", b"qXfer:features:read:target.xml:ffffffffffffffff,ffffffffffffffff",
        b"qXfer:features:read:/etc/passwd:0,fff", b"qXfer:memory-map:read::0,fff",
        b"vFile:open:2f6574632f706173737764,0,0", b"vRun;2f62696e2f7368", b"vAttach;1", b"qRcmd,",
        b"qRcmd,zz", b"qRcmd,782f3939393939393939393978", b"qRcmd,ff", b"qCRC:0,ffffffff",
        b"qSearch:memory:0;ffffffffffffffff;00", b"bs", b"bc", b"R00", b"!", b"QNonStop:1",
        b"QNonStop:2", b"vStopped", b"vCtrlC", b"QStartNoAckMode",
        b"qSupported:multiprocess+;xmlRegisters=i386", b"D;ff",
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
    let machine = counting("reads", "jit", &["--paused"]);
    let mut client = machine.connect();
    // Behind RAM, at devices, at the local APIC, where the host has its own.
    for address in [0x100_0000u64, 0xfee0_0000, 0xfec0_0000, 0x5555_5555_5000, 0x7fff_ffff_f000] {
        let reply = ask(&mut client, format!("m{address:x},8").as_bytes());
        // Without paging an address has 32 bits, as on hardware.
        let is_folded = address >> 32 != 0;
        assert!(is_folded || reply.as_deref() == Some("E0e"), "{address:#x}: {reply:?}");
    }
}

/// Numbers that repeat.
struct Random(u64);

impl Random {
    fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

#[test]
fn random_packets_leave_the_machine_as_it_is() {
    let mut machine = counting("random", "jit", &["--paused"]);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let heads: &[&[u8]] = &[
        b"m",
        b"M",
        b"X",
        b"p",
        b"P",
        b"g",
        b"G",
        b"Z0,",
        b"Z0,f0400,1;X",
        b"Z2,",
        b"z1,",
        b"vCont;",
        b"vCont;c:",
        b"vCont;t",
        b"vStopped",
        b"vCtrlC",
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
        if random.below(2) == 0 {
            let _ = client.write_all(&packet(b"QNonStop:1"));
        }
        for _ in 0..20 {
            let mut body = random.one_of(heads).to_vec();
            for _ in 0..random.below(30) {
                body.push(random.one_of(letters));
            }
            if client.write_all(&packet(&body)).is_err() {
                break;
            }
        }
    }
    assert!(is_served(&machine) && machine.is_running());
}

/// Registers of the description: how long each is, in hexadecimal digits.
fn register_digits(client: &mut UnixStream) -> Vec<usize> {
    let digits = |number: usize| ask(client, format!("p{number:x}").as_bytes());
    (0..).map(digits).map_while(|reply| reply.map(|reply| reply.len()).filter(|&d| d > 3)).collect()
}

#[test]
fn random_registers_and_memory_hurt_the_guest_alone() {
    for accel in ["interp", "jit"] {
        let mut machine = counting("state", accel, &["--paused"]);
        let mut client = machine.connect();
        let digits = register_digits(&mut client);
        assert!(digits.len() > 150, "{} registers", digits.len());
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        for round in 0..1500 {
            let number = random.below(digits.len() as u64) as usize;
            let mut value: Vec<u8> = (0..digits[number] / 2).map(|_| 0).collect();
            let changed = random.below(value.len() as u64 + 1) as usize;
            for byte in value.iter_mut().take(changed) {
                *byte = random.one_of(&[0, 1, 0x10, 0x7f, 0x80, 0xff, 0x93, 0x9b, 0xa5]);
            }
            let value: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
            ask(&mut client, format!("P{number:x}={value}").as_bytes()).unwrap();
            if round % 3 == 0 {
                let at = 0xf_0400 + random.below(0x100);
                let byte = random.below(256);
                ask(&mut client, format!("M{at:x},1:{byte:02x}").as_bytes()).unwrap();
            }
            if round % 5 == 0 {
                // A little way on, if it goes on at all.
                client.write_all(&packet(b"vCont;c")).unwrap();
                client.write_all(b"\x03").unwrap();
            } else {
                client.write_all(&packet(b"vCont;s:1")).unwrap();
                client.write_all(b"\x03").unwrap();
            }
            let stop = reply(&mut client).unwrap();
            assert!(stop.starts_with('T'), "{stop}");
            assert!(machine.is_running());
            // Ctrl-C may come when the step is done already: one more stop is told then.
            while ask(&mut client, b"qAttached").is_some_and(|reply| reply != "1") {}
        }
    }
}

#[test]
fn a_client_that_vanishes_leaves_the_guest_as_it_was_or_as_it_asked() {
    let machine = counting("vanish", "jit", &[]);
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
    let machine = counting("second", "jit", &["--paused"]);
    let mut first = machine.connect();
    assert!(ask(&mut first, b"?").is_some());
    assert_eq!(ask(&mut machine.connect(), b"?"), None);
    assert!(ask(&mut first, b"?").is_some());
}
