//! Instructions as text: bytes, mode, form, facts. Legal cases stand beside illegal ones.
//!
//! The facts of a line are exactly those that differ from the plain instruction's (interpreted,
//! general unit, any privilege, no memory), so a fact too many in the table fails as well.

use decoder::{
    BlockEnd, BlockScanner, Executor, FeatureSet, MemoryShape, Modes, Privilege, Row, Unit, Vendor,
    row,
};

const CASES: &str = "
# Arithmetic and LOCK. SDM Vol. 2A, 'LOCK': a memory destination and one of the listed instructions.
01 08                   | 32 | Add_rm32_r32          | Alu ReadWrite:4
f0 01 08                | 32 | Add_rm32_r32          | Alu ReadWrite:4 lock
f0 01 c8                | 32 | -                     | invalid
f0 03 08                | 32 | -                     | invalid
f0 39 08                | 32 | -                     | invalid
f0 ff 00                | 32 | Inc_rm32              | Alu ReadWrite:4 lock
f0 40                   | 32 | -                     | invalid
f0 87 08                | 64 | Xchg_rm32_r32         | Exchange ReadWrite:4 lock
f0 90                   | 64 | -                     | invalid
f0 0f ba 20 01          | 64 | -                     | invalid
f0 0f ba 28 01          | 64 | Bts_rm32_imm8         | Bit ReadWrite:4 lock
f0 0f ab 08             | 64 | Bts_rm32_r32          | Bit BitString:4 lock
f0 0f c7 08             | 64 | Cmpxchg8b_m64         | Exchange ReadWrite:8 lock cx8
f0 48 0f c7 08          | 64 | Cmpxchg16b_m128       | Exchange ReadWrite:16 aligned lock protected cx16
0f c7 c8                | 64 | -                     | invalid
# Moves.
8d 00                   | 32 | Lea_r32_m             | Mov Address:0
8d c0                   | 32 | -                     | invalid
8e c8                   | 32 | -                     | invalid
8e d0                   | 32 | Mov_Sreg_r32m16       | Segment Read:2 ends
8e d8                   | 32 | Mov_Sreg_r32m16       | Segment Read:2 ends
8e f8                   | 32 | -                     | invalid
17                      | 32 | Popd_SS               | Stack stack ends
17                      | 64 | -                     | invalid
0f 38 f0 00             | 32 | Movbe_r32_m32         | Mov Read:4 movbe
0f 38 f0 c0             | 32 | -                     | invalid
0f c3 08                | 32 | Movnti_m32_r32        | Mov Write:4 sse2
# Instructions of one mode.
27                      | 32 | Daa                   | Bcd
27                      | 64 | -                     | invalid
d5 0a                   | 16 | Aad_imm8              | Bcd
63 08                   | 32 | Arpl_r32m16_r32       | Descriptor ReadWrite:2 System protected
63 08                   | 16 | Arpl_rm16_r16         | Descriptor ReadWrite:2 System protected
82 c0 01                | 32 | Add_rm8_imm8_82       | Alu ReadWrite:1
82 c0 01                | 64 | -                     | invalid
9a 00 00 00 00 08 00    | 32 | Call_ptr1632          | FarTransfer System stack ends
9a 00 00 00 00 08 00    | 64 | -                     | invalid
ff 18                   | 64 | Call_m1632            | FarTransfer Read:6 System stack ends
ff d8                   | 64 | -                     | invalid
0f 01 f8                | 64 | Swapgs                | Segment Cpl0 protected
0f 01 f8                | 32 | -                     | invalid
# Control flow.
eb fe                   | 64 | Jmp_rel8_64           | Branch protected ends
e8 00 00 00 00          | 64 | Call_rel32_64         | Branch stack protected ends
c3                      | 32 | Retnd                 | Branch stack ends
cc                      | 32 | Int3                  | Interrupt ends
cd 80                   | 32 | Int_imm8              | Interrupt V86Iopl ends
cf                      | 32 | Iretd                 | FarTransfer System V86Iopl stack ends
0f 0b                   | 64 | Ud2                   | undefined ends
f4                      | 16 | Hlt                   | System System Cpl0 ends
# Flags and I/O.
fa                      | 32 | Cli                   | Flag Iopl
fb                      | 32 | Sti                   | Flag Iopl ends
9d                      | 16 | Popfw                 | Stack V86Iopl stack ends
e4 60                   | 16 | In_AL_imm8            | Io IoPermission ends
6e                      | 16 | Outsb_DX_m8           | String String:1 IoPermission ends
f3 a4                   | 16 | Movsb_m8_m8           | String String:1
0f 01 ca                | 64 | Clac                  | Flag Cpl0Undefined smap
# System.
0f 22 c0                | 32 | Mov_cr_r32            | ControlRegister System Cpl0 ends
0f 22 c8                | 32 | -                     | invalid
0f 20 c0                | 64 | Mov_r64_cr            | ControlRegister System Cpl0 protected
f0 0f 20 c0             | 32 | -                     | invalid
0f 01 10                | 32 | Lgdt_m1632            | Descriptor Read:6 System Cpl0 ends
0f 01 00                | 32 | Sgdt_m1632            | Descriptor Write:6 System Umip
0f 00 d8                | 32 | Ltr_r32m16            | Descriptor Read:2 System Cpl0 protected ends
0f 01 38                | 32 | Invlpg_m              | ControlRegister Address:0 System Cpl0 ends
66 0f 38 82 08          | 32 | Invpcid_r32_m128      | ControlRegister Read:16 System Cpl0 invpcid ends
66 0f 38 82 c8          | 32 | -                     | invalid
0f 30                   | 64 | Wrmsr                 | Msr System Cpl0 msr ends
0f 31                   | 64 | Rdtsc                 | System System Tsd tsc
0f 33                   | 64 | Rdpmc                 | Msr System Pce
0f 05                   | 64 | Syscall               | FarTransfer System syscall ends
0f 01 c1                | 64 | Vmcall                | Hypercall System ends
0f 01 d9                | 64 | Vmmcall               | Hypercall System ends
0f 01 c2                | 64 | Vmlaunch              | undefined ends
0f aa                   | 64 | Rsm                   | undefined ends
0f 01 d0                | 64 | Xgetbv                | Msr System xsave
f3 0f c7 f8             | 64 | Rdpid_r64             | System System rdpid protected
# What is a no-operation without its feature, and what is not.
f3 0f 1e fa             | 64 | Endbr64               | Nop
f3 0f 1e c8             | 32 | Rdsspd_r32            | Nop
f3 0f ae e8             | 32 | Incsspd_r32           | undefined ends
0f 1a 00                | 64 | Reservednop_rm32_r32_0F1A | Nop Address:4
f3 0f 1b 00             | 64 | Reservednop_rm32_r32_0F1B | Nop Address:4
0f 0d 08                | 64 | Prefetchw_m8          | Nop Address:1
f3 0f 09                | 64 | Wbnoinvd              | Cache Cpl0
c7 f8 00 00 00 00       | 32 | Xbegin_rel32          | undefined ends
0f 0f c0 9e             | 32 | D3NOW_Pfadd_mm_mmm64  | undefined ends
# x87 and state images.
d8 00                   | 32 | Fadd_m32fp            | X87 Read:4 X87 native waits fpu
db e3                   | 32 | Fninit                | X87 X87 native fpu
9b                      | 32 | Wait                  | X87 waits
d9 30                   | 32 | Fnstenv_m28byte       | StateImage StateImage:28 X87 fpu
66 d9 30                | 32 | Fnstenv_m14byte       | StateImage StateImage:14 X87 fpu
dd 20                   | 32 | Frstor_m108byte       | StateImage StateImage:108 X87 waits fpu
0f ae 00                | 32 | Fxsave_m512byte       | StateImage StateImage:512 System fxsr
0f ae 20                | 32 | Xsave_mem             | StateImage StateImage:0 System xsave
0f ae 10                | 32 | Ldmxcsr_m32           | StateImage Read:4 Sse sse
c5 f8 ae 10             | 32 | VEX_Vldmxcsr_m32      | StateImage Read:4 Avx protected avx
0f c7 28                | 32 | Xsaves_mem            | StateImage StateImage:0 System Cpl0 xsaves
# Vectors.
0f 6f 00                | 32 | Movq_mm_mmm64         | SimdInteger Read:8 Mmx native waits mmx
0f 77                   | 32 | Emms                  | SimdInteger Mmx native waits mmx
0f 28 00                | 32 | Movaps_xmm_xmmm128    | SimdFloat Read:16 aligned Sse native sse
0f 10 00                | 32 | Movups_xmm_xmmm128    | SimdFloat Read:16 Sse native sse
f2 0f 10 00             | 32 | Movsd_xmm_xmmm64      | SimdFloat Read:8 Sse native sse2
a5                      | 32 | Movsd_m32_m32         | String String:4
f0 0f 28 00             | 32 | -                     | invalid
0f 2a 00                | 32 | Cvtpi2ps_xmm_mmm64    | SimdFloat Read:8 SseMmx native waits loads past x87 sse
66 0f 38 dc c1          | 32 | Aesenc_xmm_xmmm128    | Crypto Read:16 aligned Sse native aes
c5 f8 77                | 32 | VEX_Vzeroupper        | SimdInteger Avx native protected avx
c5 fc 58 00             | 64 | VEX_Vaddps_ymm_ymm_ymmm256 | SimdFloat Read:32 Avx native protected avx
f0 c5 fc 58 00          | 64 | -                     | invalid
66 c5 fc 58 00          | 64 | -                     | invalid
c4 e2 78 f2 00          | 64 | VEX_Andn_r32_r32_rm32 | Alu Read:4 protected bmi1
c4 e2 79 90 0c 10       | 64 | VEX_Vpgatherdd_xmm_vm32x_xmm | SimdInteger Gather:4 Avx native protected avx2
c4 e2 71 8e 00          | 64 | VEX_Vpmaskmovd_m128_xmm_xmm | SimdInteger MaskedWrite:16 Avx native protected avx2
62 f1 7c 49 58 00       | 64 | EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er | SimdFloat MaskedRead:64 Avx512 native protected avx512f
62 f1 7c 48 77 00       | 64 | -                     | invalid
c5 f8 92 c8             | 64 | VEX_Kmovw_kr_r32      | Opmask Avx512 native protected avx512f
0f 3a cc c1 00          | 64 | Sha1rnds4_xmm_xmmm128_imm8 | Crypto Read:16 aligned Sse native sha_ni
# Ends of windows.
66                      | 32 | -                     | window
0f                      | 64 | -                     | window
66 66 66 66 66 66 66 66 66 66 66 66 66 66 90    | 64 | Nopw | Nop
66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 90 | 64 | -    | too-long
f0 66 66 66 66 66 66 66 66 66 66 66 66 66 90    | 64 | -    | invalid
";

/// The facts of `row` that differ from the plain instruction's.
fn facts(row: &Row, has_lock: bool) -> String {
    if row.executor == Executor::Undefined {
        return "undefined ends".to_owned();
    }
    let mut words = vec![format!("{:?}", row.class)];
    if row.memory.shape != MemoryShape::None {
        words.push(format!("{:?}:{}", row.memory.shape, row.memory.size));
    }
    let mut add = |is_so: bool, word: String| is_so.then(|| words.push(word));
    add(row.memory.is_aligned, "aligned".to_owned());
    add(row.unit != Unit::General, format!("{:?}", row.unit));
    add(row.executor == Executor::Native, "native".to_owned());
    add(row.privilege != Privilege::Any, format!("{:?}", row.privilege));
    add(has_lock, "lock".to_owned());
    add(row.waits_for_x87, "waits".to_owned());
    add(row.loads_past_x87, "loads past x87".to_owned());
    add(row.stack, "stack".to_owned());
    add(!row.modes.contains(Modes::REAL_V86), "protected".to_owned());
    for feature in row.features.iter() {
        add(true, feature.name().to_owned());
    }
    add(row.ends_block, "ends".to_owned());
    words.join(" ")
}

fn observed(bytes: &[u8], bitness: u32) -> (String, String) {
    let scanner = BlockScanner::new(Vendor::Intel, FeatureSet::all());
    let block = scanner.scan(bytes, 0x1000, bitness, 1);
    let Some(instruction) = block.instructions.first() else {
        let end = match block.end {
            BlockEnd::Invalid => "invalid",
            BlockEnd::TooLong => "too-long",
            BlockEnd::Window => "window",
            BlockEnd::Instruction | BlockEnd::Limit => "an end without an instruction",
        };
        return ("-".to_owned(), end.to_owned());
    };
    let code = instruction.code();
    (format!("{code:?}"), facts(row(code), instruction.has_lock_prefix()))
}

#[test]
fn instructions_have_the_facts_that_the_manuals_give() {
    let mut differences = Vec::new();
    for line in CASES.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let fields: Vec<_> = line.split('|').map(str::trim).collect();
        let [hex, bitness, code, expected] = fields[..] else { panic!("{line}") };
        let byte = |digits| u8::from_str_radix(digits, 16).unwrap();
        let bytes: Vec<u8> = hex.split_whitespace().map(byte).collect();
        let (seen_code, seen) = observed(&bytes, bitness.parse().unwrap());
        let sorted = |facts: &str| {
            let mut words: Vec<_> = facts.split_whitespace().map(str::to_owned).collect();
            words.sort();
            words.join(" ")
        };
        if seen_code != code || sorted(&seen) != sorted(expected) {
            differences.push(format!("{hex}: {seen_code} | {seen}, not {code} | {expected}"));
        }
    }
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
}

/// RFLAGS bits by letter: SDM Vol. 1, "EFLAGS Cross-Reference". A letter that is no flag is bit 31.
fn flags(letters: &str) -> u32 {
    let bit = |letter| "C.P.A.ZS.IDO".find(letter).unwrap_or(31);
    letters.chars().map(|letter| 1u32 << bit(letter)).sum()
}

#[test]
fn flags_follow_the_cross_reference() {
    use decoder::Code;
    #[rustfmt::skip]
    let cases = [
        // form                      reads     writes    leaves undefined
        (Code::Add_rm32_r32,         "",       "OSZAPC", ""),
        (Code::Adc_rm32_r32,         "C",      "OSZAPC", ""),
        (Code::Sbb_rm32_r32,         "C",      "OSZAPC", ""),
        (Code::Xor_rm32_r32,         "",       "OSZPC",  "A"),
        (Code::And_rm32_r32,         "",       "OSZPC",  "A"),
        (Code::Inc_rm32,             "",       "OSZAP",  ""),
        (Code::Not_rm32,             "",       "",       ""),
        (Code::Neg_rm32,             "",       "OSZAPC", ""),
        (Code::Shl_rm32_imm8,        "",       "SZPC",   "OA"),
        (Code::Shl_rm32_1,           "",       "OSZPC",  "A"),
        (Code::Rol_rm32_imm8,        "",       "C",      "O"),
        (Code::Rcl_rm32_imm8,        "C",      "C",      "O"),
        (Code::Mul_rm32,             "",       "OC",     "SZAP"),
        (Code::Imul_r32_rm32,        "",       "OC",     "SZAP"),
        (Code::Div_rm32,             "",       "",       "OSZAPC"),
        (Code::Bt_rm32_r32,          "",       "C",      "OSAP"),
        (Code::Bsf_r32_rm32,         "",       "Z",      "OSAPC"),
        (Code::Tzcnt_r32_rm32,       "",       "ZC",     "OSAP"),
        (Code::Popcnt_r32_rm32,      "",       "OSZAPC", ""),
        (Code::Adcx_r32_rm32,        "C",      "C",      ""),
        (Code::Adox_r32_rm32,        "O",      "O",      ""),
        (Code::VEX_Andn_r32_r32_rm32, "",      "OSZC",   "AP"),
        (Code::VEX_Mulx_r32_r32_rm32, "",      "",       ""),
        (Code::Daa,                  "AC",     "SZAPC",  "O"),
        (Code::Aaa,                  "A",      "AC",     "OSZP"),
        (Code::Aam_imm8,             "",       "SZP",    "OAC"),
        (Code::Cmpxchg_rm32_r32,     "",       "OSZAPC", ""),
        (Code::Cmpxchg8b_m64,        "",       "Z",      ""),
        (Code::Jle_rel8_64,          "OSZ",    "",       ""),
        (Code::Cmova_r32_rm32,       "ZC",     "",       ""),
        (Code::Movsb_m8_m8,          "D",      "",       ""),
        (Code::Cmpsb_m8_m8,          "D",      "OSZAPC", ""),
        (Code::Comisd_xmm_xmmm64,    "",       "OSZAPC", ""),
        (Code::Fcomi_st0_sti,        "",       "OSZAPC", ""),
        (Code::Rdrand_r32,           "",       "OSZAPC", ""),
        (Code::Lar_r32_r32m16,       "",       "Z",      ""),
        (Code::Cld,                  "",       "D",      ""),
        (Code::Lea_r32_m,            "",       "",       ""),
    ];
    for (code, read, written, undefined) in cases {
        let row = row(code);
        assert_eq!(row.flags_read, flags(read), "{code:?} reads");
        assert_eq!(row.flags_written, flags(written), "{code:?} writes");
        assert_eq!(row.flags_undefined, flags(undefined), "{code:?} leaves undefined");
    }
}
