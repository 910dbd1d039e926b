"""Commands for gdb that is connected to Volvelle: `source volvelle-gdb.py`.

gdb takes the machine for a 64-bit one at all times and RIP for an address. Where that is wrong, in
16- and 32-bit code and where CS has a base, these ask the machine itself.

    vx [COUNT]              disassemble from the current instruction on, as the CPU decodes it
    vbreak [SEGMENT:]OFFSET break there: in SEGMENT of real mode, else in the current CS
    $linear(OFFSET)         the linear address of OFFSET in the current CS

Outside of 64-bit mode each stop shows the instruction that comes, and a change of mode is told.
"""

import gdb


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


Disassemble()
Break()
Linear()
gdb.events.stop.connect(Stops())
