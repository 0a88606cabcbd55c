"""Lines that carry so many bytes and then break, to a real agent on this machine."""

from fedctl.errors import NodeError
from fedctl.transports.local import LocalTransport


class Breaking:
    """The local transport over lines that carry so many bytes more, up or down, and then break as a server's do."""

    def __init__(self, home):
        self.inner = LocalTransport(home=str(home))
        self.left = {"up": 10**12, "down": 10**12}
        self.carried = {"up": 0, "down": 0}
        self.opened = []
        self.refuse = False

    def break_after(self, **left):
        self.left.update(left)

    def open(self, argv):
        if self.refuse:
            raise NodeError("the server opens no more sessions")
        self.opened.append(Line(self, self.inner.open(argv)))
        return self.opened[-1]


class Line:
    """A process on such a line: when it breaks, the command sees the end of its stdin."""

    def __init__(self, transport, process):
        self.transport = transport
        self.process = process
        self.close_stdin, self.errors, self.wait = process.close_stdin, process.errors, process.wait
        self.kill = process.kill

    def passing(self, way, size):
        passes = min(size, self.transport.left[way])
        self.transport.left[way] -= passes
        self.transport.carried[way] += passes
        return passes

    def write(self, data):
        passes = self.passing("up", len(data))
        self.process.write(data[:passes])
        if passes < len(data):
            self.process.close_stdin()
            raise OSError("the line broke")

    def read(self, size):
        data = self.process.read(min(size, self.transport.left["down"]))
        if self.passing("down", len(data)) < size:
            self.kill()
        return data
