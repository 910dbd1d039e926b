//! What guest memory costs: scalars, runs of bytes, and the way through the address map.
#![expect(clippy::unwrap_used, reason = "a host without a few MiB measures nothing")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use memory::{GuestPhysical, PhysicalSpace, Ram, RegionKind, Width};

const BYTES: u64 = 16 << 20;
const PAGE: usize = 4096;

fn scalars(criterion: &mut Criterion) {
    let ram = Ram::new(BYTES).unwrap();
    let mut at = 0;
    let mut next = move || {
        at = (at + 4104) % (BYTES - 8);
        at
    };
    let mut group = criterion.benchmark_group("ram");
    group.bench_function("load", |bencher| bencher.iter(|| ram.load::<u64>(black_box(next()))));
    group.bench_function("store", |bencher| {
        bencher.iter(|| ram.store(black_box(next()), black_box(1_u64)));
    });
    group.bench_function("compare_exchange", |bencher| {
        bencher.iter(|| ram.compare_exchange(black_box(4096), black_box(0_u64), 0));
    });
    group.finish();
}

fn runs(criterion: &mut Criterion) {
    let ram = Ram::new(BYTES).unwrap();
    let mut page = [0_u8; PAGE];
    let mut group = criterion.benchmark_group("ram");
    group.throughput(Throughput::Bytes(PAGE as u64));
    group.bench_function("read_page", |bencher| {
        bencher.iter(|| ram.read_bytes(black_box(8192), black_box(&mut page)));
    });
    group.bench_function("write_page", |bencher| {
        bencher.iter(|| ram.write_bytes(black_box(8192), black_box(&page)));
    });
    group.bench_function("copy_page", |bencher| {
        bencher.iter(|| ram.copy_forward(black_box(8192), black_box(0), PAGE as u64));
    });
    group.finish();
}

fn space(criterion: &mut Criterion) {
    let space = PhysicalSpace::new(Arc::new(Ram::new(BYTES).unwrap()));
    space.map(GuestPhysical(0), BYTES, RegionKind::Ram(0)).unwrap();
    let mut group = criterion.benchmark_group("space");
    group.bench_function("read_ram", |bencher| {
        bencher.iter(|| space.read(black_box(GuestPhysical(0x1234)), Width::Dword));
    });
    group.bench_function("read_nothing", |bencher| {
        bencher.iter(|| space.read(black_box(GuestPhysical(0xf000_0000)), Width::Dword));
    });
    group.finish();
}

fn short() -> Criterion {
    let times = (Duration::from_millis(300), Duration::from_secs(1));
    Criterion::default().warm_up_time(times.0).measurement_time(times.1).sample_size(20)
}

criterion_group! {
    name = benches;
    config = short();
    targets = scalars, runs, space
}
criterion_main!(benches);
