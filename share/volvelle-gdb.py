"""Commands for gdb that is connected to Volvelle: `source volvelle-gdb.py`.

gdb takes the machine for a 64-bit one at all times and RIP for an address. Where that is wrong, in
16- and 32-bit code and where CS has a base, these ask the machine itself. And they give gdb the
names that the machine knows, those of a Linux kernel that it found in the guest's memory.

    vx [COUNT]              disassemble from the current instruction on, as the CPU decodes it
    vbreak [SEGMENT:]OFFSET break there: in SEGMENT of real mode, else in the current CS
    $linear(OFFSET)         the linear address of OFFSET in the current CS
    vsymbols                give gdb all names, and the kernel's own way to walk its stacks

Outside of 64-bit mode each stop shows the instruction that comes, and a change of mode is told.
"""

import atexit
import bisect
import os
import shutil
import struct
import tempfile

import gdb
from gdb.unwinder import Unwinder, register_unwinder


MASK = (1 << 64) - 1


def monitor(line):
    """Has the machine's monitor do `line` for the selected CPU, and gives its answer."""
    thread = gdb.selected_thread()
    if thread is not None:
        gdb.execute("monitor cpu %d" % (thread.ptid[1] - 1), to_string=True)
    return gdb.execute("monitor " + line, to_string=True)


def register(name):
    return int(gdb.parse_and_eval("(unsigned long)$" + name))


def mode():
    """What decides how instructions are decoded."""
    if register("cr0") & 1 == 0:
        return "real mode"
    if register("efer") & 0x400 and register("cs_attr") & 0x2000:
        return "64-bit mode"
    return "%d-bit protected mode" % (32 if register("cs_attr") & 0x4000 else 16)


class Disassemble(gdb.Command):
    """Disassemble from the current instruction on: vx [COUNT]"""

    def __init__(self):
        super().__init__("vx", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        count = int(gdb.parse_and_eval(argument)) if argument else 1
        gdb.write(monitor("x/%di" % count))


class Break(gdb.Command):
    """Break at an offset in a segment: vbreak [SEGMENT:]OFFSET"""

    def __init__(self):
        super().__init__("vbreak", gdb.COMMAND_BREAKPOINTS)

    def invoke(self, argument, from_tty):
        segment, colon, offset = argument.rpartition(":")
        base = int(gdb.parse_and_eval(segment)) << 4 if colon else register("cs_base")
        linear = base + int(gdb.parse_and_eval(offset))
        gdb.execute("break *%#x" % linear)


class Linear(gdb.Function):
    """The linear address of an offset in the current CS."""

    def __init__(self):
        super().__init__("linear")

    def invoke(self, offset):
        return register("cs_base") + int(offset)


class Stops:
    """Tells of a mode that gdb does not know of."""

    last = None

    def __call__(self, event):
        now = mode()
        if self.last not in (None, now):
            gdb.write("the CPU is in %s\n" % now)
        self.last = now
        if now != "64-bit mode":
            gdb.write(monitor("x/1i"))


class Module:
    """Symbols of one image, as the machine lists them: address, size, letter, name."""

    # Letters of `nm` for code, and for names that are numbers.
    CODE, ABSOLUTE = "twi", "A"
    # How far a section goes behind a last symbol whose size is not known.
    TAIL = 4096
    # Pieces that gdb is given as sections at most: the others go into the last one.
    SECTIONS_MAX = 4096

    def __init__(self, name):
        self.name = name
        self.placed = []
        self.absolute = []

    def add(self, address, size, letter, name):
        rows = self.absolute if letter == self.ABSOLUTE else self.placed
        rows.append((address, size, letter, name))

    def sections(self):
        """Runs of code and of data, as (start, end, is code, rows)."""
        runs = []
        for row in sorted(self.placed):
            is_code = row[2].lower() in self.CODE
            if not runs or is_code != runs[-1][0] and len(runs) < self.SECTIONS_MAX:
                runs.append((is_code, []))
            runs[-1][1].append(row)
        starts = [rows[0][0] for _, rows in runs[1:]] + [(1 << 64) - 1]
        for (is_code, rows), limit in zip(runs, starts):
            end = rows[-1][0] + (rows[-1][1] or self.TAIL)
            yield rows[0][0], min(end, limit), is_code, rows


class SymbolFile:
    """An ELF file that has names for addresses, and no contents."""

    HEADER, SECTION, SYMBOL = "<16sHHIQQQIHHHHHH", "<IIQQQQIIQQ", "<IBBHQQ"
    EXECUTABLE, X86_64, ABSOLUTE = 2, 62, 0xFFF1
    SYMTAB, STRTAB, NOBITS = 2, 3, 8
    WRITE, ALLOC, EXECUTE = 1, 2, 4
    OBJECT, FUNCTION = 1, 2

    def __init__(self, module):
        self.strings = bytearray(1)
        self.sections = [struct.pack(self.SECTION, *[0] * 10)]
        self.local = [struct.pack(self.SYMBOL, *[0] * 6)]
        self.others = []
        for start, end, is_code, rows in module.sections():
            rights = self.EXECUTE if is_code else self.WRITE
            name = b".text" if is_code else b".data"
            self.section(name, self.NOBITS, self.ALLOC | rights, start, 0, end - start)
            kind = self.FUNCTION if is_code else self.OBJECT
            for row, size in zip(rows, sizes(rows, end)):
                self.symbol(row, size, kind, len(self.sections) - 1)
        for row in module.absolute:
            self.symbol(row, row[1], self.OBJECT, self.ABSOLUTE)

    def string(self, text):
        at = len(self.strings)
        self.strings += text + b"\0"
        return at

    def section(self, name, kind, flags, address, offset, size, link=0, info=0, entry=0):
        values = self.string(name), kind, flags, address, offset, size, link, info, 1, entry
        self.sections.append(struct.pack(self.SECTION, *values))

    def symbol(self, row, size, kind, section):
        address, _, letter, name = row
        binding = 2 if letter in "WV" else letter.isupper()
        values = self.string(name.encode()), binding << 4 | kind, 0, section, address, size
        to = self.others if binding else self.local
        to.append(struct.pack(self.SYMBOL, *values))

    def write(self, path):
        symbols = b"".join(self.local + self.others)
        head = struct.calcsize(self.HEADER)
        entry = struct.calcsize(self.SYMBOL)
        last, count = len(self.sections) + 1, len(self.local)
        self.section(b".symtab", self.SYMTAB, 0, 0, head, len(symbols), last, count, entry)
        name = self.string(b".strtab")
        at = head + len(symbols)
        values = name, self.STRTAB, 0, 0, at, len(self.strings), 0, 0, 1, 0
        self.sections.append(struct.pack(self.SECTION, *values))
        at += len(self.strings)
        ident = b"\x7fELF\x02\x01\x01"
        each = struct.calcsize(self.SECTION)
        values = self.EXECUTABLE, self.X86_64, 1, 0, 0, at, 0, head, 0, 0, each, last + 1, last
        with open(path, "wb") as file:
            file.write(struct.pack(self.HEADER, ident, *values))
            file.write(symbols + self.strings + b"".join(self.sections))


def sizes(rows, end):
    """The size of each symbol of a section: to the next one where the machine does not know."""
    found, next_start = [], end
    behind = end
    for address, size, _, _ in reversed(rows):
        if behind > address:
            next_start = behind
        found.append(size or next_start - address)
        behind = address
    return reversed(found)


def modules():
    """All names that the machine knows."""
    found, first = [], 0
    while first is not None:
        lines = monitor("symbols list %d" % first).splitlines()
        first = None
        for line in lines:
            if line.startswith("0x"):
                address, size, letter, name = line.split(" ", 3)
                found[-1].add(int(address, 16), int(size, 16), letter, name)
            elif line.startswith("module "):
                name = line[len("module "):]
                if not found or found[-1].name != name:
                    found.append(Module(name))
            elif line.startswith("and more from "):
                first = int(line.split()[3])
            else:
                raise gdb.GdbError(line)
    return found


class Symbols(gdb.Command):
    """Give gdb all names that the machine knows: vsymbols"""

    def __init__(self):
        super().__init__("vsymbols", gdb.COMMAND_FILES)
        self.folder = None
        self.files = []
        self.stacks = KernelStacks()

    def invoke(self, argument, from_tty):
        with gdb.with_parameter("confirm", False), gdb.with_parameter("host-charset", "UTF-8"):
            found = modules()
            if not found:
                raise gdb.GdbError("no names: no --symbols, and no Linux kernel that was found")
            self.forget()
            for number, module in enumerate(found):
                self.give(number, module)
        self.stacks.use(found)

    def forget(self):
        for path in self.files:
            try:
                gdb.execute("remove-symbol-file \"%s\"" % path, to_string=True)
            except gdb.error:
                # The user has taken it away.
                pass
        self.files.clear()

    def give(self, number, module):
        if self.folder is None:
            self.folder = tempfile.mkdtemp(prefix="volvelle-")
            atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        path = os.path.join(self.folder, "%d-%s" % (number, os.path.basename(module.name)))
        SymbolFile(module).write(path)
        gdb.execute("add-symbol-file \"%s\"" % path, to_string=True)
        self.files.append(path)
        gdb.write("%s: %d symbols\n" % (module.name, len(module.placed) + len(module.absolute)))


class FrameId:
    """What tells a frame from others while it lives: its caller's stack, and its function."""

    def __init__(self, sp, pc):
        self.sp = gdb.Value(sp)
        self.pc = gdb.Value(pc)


class Orc:
    """The tables by which a Linux kernel walks its stacks: `symbols/src/orc.rs` says how.

    They are read from the guest's memory here, and the machine's `backtrace` is not asked: behind a
    `monitor` gdb executes a breakpoint's commands, which it must not while it unwinds.
    """

    PREVIOUS_SP, BP, SP, SP_INDIRECT, BP_INDIRECT = 1, 4, 5, 9, 8
    OTHERS = {2: "rdx", 3: "rdi", 6: "r10", 7: "r13"}
    # What a frame is, by the numbers before Linux 6.4 and from it on.
    OLDER = {0: "call", 1: "registers", 2: "interrupt"}
    NEWER = {2: "call", 3: "registers", 4: "interrupt"}
    # Where struct pt_regs, and the frame of an interrupt in it, have what is restored.
    REGISTERS = {"r13": 16, "rbp": 32, "r10": 56, "rdx": 96, "rdi": 112, "rip": 128, "rsp": 152}
    INTERRUPT = {"rip": 0, "rsp": 24}

    def __init__(self, addresses):
        self.first = addresses["__start_orc_unwind_ip"]
        self.count = (addresses["__stop_orc_unwind_ip"] - self.first) // 4
        self.entries = addresses["__start_orc_unwind"]
        self.starts = {}
        # Most of the code is functions.
        sample = struct.iter_unpack("<4xH", read(self.entries, 6 * min(self.count, 2048)))
        kinds = [flags >> 8 & 7 for flags, in sample]
        self.is_newer = kinds.count(2) > kinds.count(0)

    def start(self, index):
        """Where the code of an entry starts. The tables stay as they are."""
        if index not in self.starts:
            place = self.first + 4 * index
            self.starts[index] = place + struct.unpack("<i", read(place, 4))[0]
        return self.starts[index]

    def caller(self, address, registers):
        """The registers of the caller, of which `registers` gives this frame's by name."""
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            if self.start(middle) <= address:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return None
        sp_offset, bp_offset, flags = struct.unpack("<hhH", read(self.entries + 6 * (low - 1), 6))
        if self.is_newer:
            kind = self.NEWER.get(flags >> 8 & 7)
        else:
            kind = None if flags >> 10 & 3 else self.OLDER.get(flags >> 8 & 3)
        sp = kind and self.frame(flags & 15, sp_offset, registers)
        if sp is None:
            return None
        if kind == "call":
            found = {"rip": word(sp - 8), "rsp": sp}
        else:
            places = self.REGISTERS if kind == "registers" else self.INTERRUPT
            found = {name: word(sp + offset) for name, offset in places.items()}
        # What a frame does not keep is its caller's.
        own = registers("rbp")
        base = {self.PREVIOUS_SP: sp, self.BP: own}.get(flags >> 4 & 15)
        found.setdefault("rbp", own)
        if base is not None:
            found["rbp"] = word(base + bp_offset)
        # A program's stack is another one: gdb ends this one at an instruction at 0.
        is_kernel = found["rip"] >> 63 != 0
        return found if is_kernel else {"rip": 0, "rsp": sp, "rbp": own}

    def frame(self, register, offset, registers):
        """Where the caller's frame is."""
        if register == self.SP:
            return registers("rsp") + offset
        if register == self.BP:
            return registers("rbp") + offset
        if register == self.SP_INDIRECT:
            return word(registers("rsp")) + offset
        if register == self.BP_INDIRECT:
            return word(registers("rbp") + offset)
        name = self.OTHERS.get(register)
        return None if name is None else registers(name) + offset


def read(address, count):
    return bytes(gdb.selected_inferior().read_memory(address & MASK, count))


def word(address):
    return struct.unpack("<Q", read(address, 8))[0]


class KernelStacks(Unwinder):
    """Walks the stacks of a Linux kernel by its own tables."""

    def __init__(self):
        super().__init__("volvelle-kernel")
        self.orc = None
        self.functions = []

    def use(self, modules):
        """Takes the tables of the kernel among these, if there is one."""
        self.orc = None
        for module in modules:
            rows = module.placed
            self.functions = sorted(row[0] for row in rows if row[2].lower() in Module.CODE)
            addresses = {name: address for address, _, _, name in rows if "_orc_unwind" in name}
            if "__stop_orc_unwind_ip" in addresses:
                self.orc = Orc(addresses)
                register_unwinder(None, self, replace=True)
                break
        gdb.invalidate_cached_frames()

    def __call__(self, pending):
        rip = int(pending.read_register("rip")) & MASK
        if self.orc is None or rip >> 63 == 0:
            return None
        # A call may be the last instruction of its function.
        code = rip - (pending.level() > 0)
        registers = lambda name: int(pending.read_register(name)) & MASK
        try:
            caller = self.orc.caller(code, registers)
        except gdb.error:
            # Memory that is not there, or a register that is not known in this frame.
            return None
        if caller is None:
            return None
        behind = bisect.bisect_right(self.functions, code)
        start = self.functions[behind - 1] if behind else code
        info = pending.create_unwind_info(FrameId(caller["rsp"], start))
        for name, value in caller.items():
            kind = pending.read_register(name).type
            info.add_saved_register(name, gdb.Value(value).cast(kind))
        return info


Disassemble()
Break()
Linear()
Symbols()
gdb.events.stop.connect(Stops())
